"""Turns a model directory into an Orbax checkpoint of its sharded state, or back into safetensors, bit for bit.

Runs on the host's processor whatever accelerators there are, with one virtual device per tensor rank, and needs host
memory for the whole model. The output appears only when it is complete.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from absl import flags

from exegpt_jax.weights import manifest
from exegpt_jax.weights.checkpoint import check_tensors, common_dtype, open_checkpoint
from exegpt_jax.weights.digest import checkpoint_digest
from serving.flags import shared
from serving.progress import Display
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.tensor_degree import check_tensor
from solver.plan.memory import DTYPE_BYTES, format_bytes
from solver.plan.schedule import StageSpec

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
flags.DEFINE_string("output", None, "directory to make", flag_values=FLAGS)
flags.DEFINE_enum("format", "orbax", ("orbax", "safetensors"), "what to write", flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", None, tuple(DTYPE_BYTES), "of the written weights; the checkpoint's own if absent", flag_values=FLAGS
)
flags.DEFINE_integer(
    "tensor", 1, "orbax: tensor-parallel degree to store for; others can be restored too", 1, flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Converts; raises ValueError with one line if the model or the output will not do."""
    shared.refuse_arguments(argv)
    directory = shared.model_directory(FLAGS)
    if not FLAGS.output:
        raise ValueError("output: not given; name a new directory with --output=DIR")
    output = Path(FLAGS.output)
    manifest.check_new(output)
    if FLAGS.format == "safetensors" and FLAGS.tensor != 1:
        raise ValueError(f"tensor: {FLAGS.tensor} has no meaning for safetensors; leave it out")
    spec = read_model_spec(directory)
    check_tensor(spec, FLAGS.tensor)
    dtype = FLAGS.dtype or _stored_dtype(directory, spec)
    started_s = time.monotonic()
    total_bytes = _convert(directory, output, spec, dtype, FLAGS.tensor)
    took_s = time.monotonic() - started_s
    print(f"{output}: {FLAGS.format}, {dtype}, {format_bytes(total_bytes)} of weights in {took_s:.1f} s")
    return 0


def _stored_dtype(directory: Path, spec: ModelSpec) -> str:
    if manifest.is_checkpoint(directory):
        return manifest.read_manifest(directory).dtype
    with open_checkpoint(directory) as files:
        tensors = {name: file.tensors[name] for name, file in files.items()}
        return common_dtype(tensors[name] for name in check_tensors(directory, spec, tensors).values())


def _use_host(tensor: int) -> None:
    """Virtual devices on the host's processor, unless jax already runs."""
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={tensor}"


def _convert(directory: Path, output: Path, spec: ModelSpec, dtype: str, tensor: int) -> int:
    """Loads, then writes; returns the bytes of the loaded weights."""
    _use_host(tensor)
    import jax

    from exegpt_jax.weights import orbax
    from exegpt_jax.weights.export import save_safetensors
    from exegpt_jax.weights.loading import load_stage

    devices = jax.devices()[:tensor]
    if len(devices) < tensor:
        raise ValueError(f"tensor: {tensor}, but jax already runs with {len(devices)} devices; use a new process")
    layout = StageSpec("both", (0, spec.num_layers), tuple(device.id for device in devices), tensor)
    with Display() as display:

        def shown(name: str, path: str, done_bytes: int, total_bytes: int) -> None:
            bars[name](done_bytes / total_bytes, path)

        bars = {name: display.bar(name, 1.0) for name in ("load", "write")}
        stage = load_stage(directory, spec, layout, dtype, devices, lambda *step: shown("load", *step))
        if FLAGS.format == "safetensors":
            with manifest.complete_directory(output) as unfinished:
                manifest.copy_settings(directory, unfinished, dtype)
                save_safetensors(stage, unfinished, lambda *step: shown("write", *step))
        else:
            orbax.save(stage, directory, checkpoint_digest(directory), output)
            bars["write"](1.0, "")
    return sum(param.nbytes for param in stage.params)
