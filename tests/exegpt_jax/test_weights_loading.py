"""Loading: every family, every tensor degree, every dtype; what is refused; how much memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from exegpt_jax.models import families
from exegpt_jax.models.random import random_stage
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import blueprint
from exegpt_jax.weights import checkpoint, loading
from exegpt_jax.weights.checkpoint import expected_tensors
from exegpt_jax.weights.digest import checkpoint_digest
from exegpt_jax.weights.export import save_safetensors
from exegpt_jax.weights.loading import load_stage
from exegpt_jax.weights.safetensors import write_safetensors
from solver.facts.model_config import parse_config, read_model_spec
from solver.facts.parameters import parameters
from solver.plan.memory import weight_bytes
from solver.plan.schedule import StageSpec
from tests.exegpt_jax.tiny_models import (
    CONFIGS,
    assert_holds,
    expected_params,
    read_tensors,
    spec_of,
    stage_spec,
    write_model,
    write_tensors,
)

GOLDEN = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/model.safetensors"))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [(0, 3), (0, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_the_list_of_parameters_is_the_modules(name: str, layers: tuple[int, int], tensor: int) -> None:
    """What is counted is what is allocated: paths, shapes, axes, and bytes per device."""
    spec, stage = spec_of(name), stage_spec(spec_of(name), tensor, layers)
    leaves = blueprint(spec, stage, "bfloat16", make_mesh(jax.devices()[:tensor])).leaves
    listed = {parameter.path: (parameter.shape, parameter.axes) for parameter in parameters(spec, layers, tensor)}
    assert {leaf.path: (leaf.shape, leaf.axes) for leaf in leaves} == listed
    shards = [int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * 2 for leaf in leaves]
    assert sum(shards) == weight_bytes(spec, stage, "bfloat16")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_every_degree(tmp_path: Path, name: str, tensor: int) -> None:
    tensors, spec = write_model(name, tmp_path), spec_of(name)
    loaded = load_stage(tmp_path, spec, stage_spec(spec, tensor), "float32")
    assert_holds(loaded, expected_params(spec, tensors, tensor))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_exact(tmp_path: Path, name: str, dtype: str) -> None:
    """safetensors -> shards on 8 devices -> safetensors: the same bytes."""
    tensors, spec = write_model(name, tmp_path, dtype), spec_of(name)
    back = tmp_path / "back"
    back.mkdir()
    save_safetensors(load_stage(tmp_path, spec, stage_spec(spec, 8), dtype), back)
    assert read_tensors(back).keys() == tensors.keys()
    for key, tensor in read_tensors(back).items():
        assert tensor.tobytes() == tensors[key].tobytes()


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (1, 3)])
def test_part_of_the_layers(tmp_path: Path, name: str, layers: tuple[int, int]) -> None:
    tensors, spec = write_model(name, tmp_path), spec_of(name)
    loaded = load_stage(tmp_path, spec, stage_spec(spec, 2, layers), "float32")
    assert_holds(loaded, expected_params(spec, tensors, 2, layers))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_converts_dtypes(tmp_path: Path, name: str, stored: str, wanted: str) -> None:
    tensors, spec = write_model(name, tmp_path, stored), spec_of(name)
    loaded = load_stage(tmp_path, spec, stage_spec(spec, 2), wanted)
    converted = {key: tensor.astype(jnp.dtype(wanted)) for key, tensor in tensors.items()}
    assert_holds(loaded, expected_params(spec, converted, 2))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "opt"])
def test_chunks_of_any_size(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks smaller than a head, a row or a shard still join to the whole."""
    monkeypatch.setattr(loading, "SCRATCH_BYTES", 300)
    tensors, spec = write_model(name, tmp_path), spec_of(name)
    for tensor in (1, 4):
        loaded = load_stage(tmp_path, spec, stage_spec(spec, tensor), "float32")
        assert_holds(loaded, expected_params(spec, tensors, tensor))


def test_given_devices_and_progress(tmp_path: Path) -> None:
    write_model("qwen3", tmp_path)
    spec = spec_of("qwen3")
    seen: list[tuple[str, int, int]] = []
    devices = jax.devices()[4:6]
    loaded = load_stage(tmp_path, spec, stage_spec(spec, 2), "float32", devices, lambda *step: seen.append(step))
    assert set(loaded.params[0].devices()) == set(devices)
    assert [path for path, _, _ in seen] == [leaf.path for leaf in loaded.blueprint.leaves]
    assert seen[-1][1] == seen[-1][2] == sum(array.nbytes for array in loaded.params)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("llama", "model.")])
def test_bare_checkpoints(tmp_path: Path, name: str, prefix: str) -> None:
    """Checkpoints of the model without its head leave the prefix out."""
    tensors, spec = write_model(name, tmp_path), spec_of(name)
    write_tensors(tmp_path / checkpoint.SINGLE, {key.removeprefix(prefix): t for key, t in tensors.items()})
    loaded = load_stage(tmp_path, spec, stage_spec(spec), "float32")
    assert_holds(loaded, expected_params(spec, tensors, 1))


def test_ignored_tensors(tmp_path: Path) -> None:
    tensors, spec = write_model("gpt2", tmp_path), spec_of("gpt2")
    ignored = {"transformer.h.0.attn.masked_bias": np.zeros(1, np.float32), "lm_head.weight": np.zeros(2, np.float32)}
    write_tensors(tmp_path / checkpoint.SINGLE, tensors | ignored)
    loaded = load_stage(tmp_path, spec, stage_spec(spec), "float32")
    assert_holds(loaded, expected_params(spec, tensors, 1))


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    tensors, spec = write_model("llama", tmp_path), spec_of("llama")
    missing = [f"model.layers.{layer}.{kind}.weight" for layer in (1, 2) for kind in ("mlp.up_proj", "mlp.down_proj")]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in missing}
    tensors |= {"model.layers.0.odd": np.zeros(1, np.float32), "model.norm.weight": np.zeros(5, np.float32)}
    write_tensors(tmp_path / checkpoint.SINGLE, tensors)
    with pytest.raises(ValueError) as failure:
        load_stage(tmp_path, spec, stage_spec(spec), "float32")
    text = str(failure.value)
    assert f"4 missing: {', '.join(missing[:3])} and 1 more;" in text
    assert "1 unexpected: model.layers.0.odd;" in text
    assert "1 mis-shaped: model.norm.weight is [5], expected [24]" in text
    assert "\n" not in text


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    arrays = {name: np.zeros(shape, np.int8) for name, shape in expected_tensors(spec_of("llama")).items()}
    safetensors.numpy.save_file(arrays, tmp_path / checkpoint.SINGLE)
    with pytest.raises(ValueError, match=r"of a dtype that is not read: .* is I8"):
        load_stage(tmp_path, spec_of("llama"), stage_spec(spec_of("llama")), "float32")


def test_a_shorter_file_is_refused(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    path = tmp_path / checkpoint.SINGLE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        load_stage(tmp_path, spec_of("llama"), stage_spec(spec_of("llama")), "float32")


def test_absent_device(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    with pytest.raises(ValueError, match="device 99 is absent"):
        load_stage(tmp_path, spec_of("llama"), StageSpec("both", (0, 3), (99,), 1), "float32")


def test_sharded_checkpoint_loads_the_same(tmp_path: Path) -> None:
    tensors, spec = write_model("opt", tmp_path), spec_of("opt")
    (tmp_path / checkpoint.SINGLE).unlink()
    weight_map = {}
    for shard in range(3):
        names = list(tensors)[shard::3]
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        write_tensors(tmp_path / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    (tmp_path / checkpoint.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_stage(tmp_path, spec, stage_spec(spec, 4), "float32")
    assert_holds(loaded, expected_params(spec, tensors, 4))


def test_only_a_whole_model_is_exported(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "model")
    stage = load_stage(tmp_path / "model", spec_of("llama"), stage_spec(spec_of("llama"), layers=(0, 2)), "float32")
    (tmp_path / "back").mkdir()
    with pytest.raises(ValueError, match="whole model"):
        save_safetensors(stage, tmp_path / "back")
    assert not list((tmp_path / "back").iterdir())


def test_random_stages_export_too(tmp_path: Path) -> None:
    """Made at degree 4, written, loaded at degree 1: repeated heads and padding leave no trace."""
    spec = spec_of("llama")
    save_safetensors(random_stage(spec, tensor=4), tmp_path)
    tensors = read_tensors(tmp_path)
    assert_holds(load_stage(tmp_path, spec, stage_spec(spec), "float32"), expected_params(spec, tensors, 1))
    assert_holds(load_stage(tmp_path, spec, stage_spec(spec, 4), "float32"), expected_params(spec, tensors, 4))


@pytest.mark.parametrize("directory", GOLDEN, ids=lambda directory: directory.name)
def test_files_that_transformers_wrote(tmp_path: Path, directory: Path) -> None:
    """Loaded on 2 devices and written back: every tensor that holds a weight, bit for bit."""
    spec = read_model_spec(directory)
    theirs = read_tensors(directory)
    (dtype,) = {tensor.dtype.name for tensor in theirs.values()}
    save_safetensors(load_stage(directory, spec, stage_spec(spec, 2), dtype), tmp_path)
    table = families.table(spec)
    theirs = {table.full_name(name): tensor for name, tensor in theirs.items()}
    ours = read_tensors(tmp_path)
    assert {name for name in theirs if not table.is_ignored(name)} == set(ours)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_digest_follows_every_file(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    digests = {checkpoint_digest(tmp_path)}
    assert digests == {checkpoint_digest(tmp_path)}
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes() + b" ")
        digests.add(checkpoint_digest(tmp_path))
    assert len(digests) == 5


# Memory ----------------------------------------------------------------------------------------------------------

MEASURED = """
import json, os, resource, sys, threading, time
from pathlib import Path
import jax
from exegpt_jax.weights.loading import load_stage
from solver.facts.model_config import read_model_spec
from solver.plan.schedule import StageSpec

directory, tensor, dtype = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
spec = read_model_spec(directory)

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

stage = StageSpec("both", (0, 1), tuple(range(tensor)), tensor)
for device in jax.devices()[:tensor]:
    jax.device_put(0, device).block_until_ready()
small = load_stage(Path(sys.argv[4]), read_model_spec(Path(sys.argv[4])), stage, dtype)
Path("/proc/self/clear_refs").write_text("5")
before = resident_bytes()
loaded = load_stage(directory, spec, stage, dtype)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
shards = [max(shard.data.nbytes for shard in array.addressable_shards) for array in loaded.params]
held = sum(shard.data.nbytes for array in loaded.params for shard in array.addressable_shards)
print(json.dumps({"beyond": peak - before - held, "largest_shard": max(shards), "held": held}))
"""


def write_wide(directory: Path, family: str, hidden: int, mlp: int, dtype: str) -> None:
    """One layer whose feed-forward matrices outweigh all else."""
    sizes: dict[str, object] = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": 1}
    if family == "gpt2":
        sizes = {"n_embd": hidden, "n_inner": mlp, "n_layer": 1}
    config = {**CONFIGS[family], **sizes}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shapes = expected_tensors(parse_config(config))
    numpy_dtype = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[dtype]
    write_safetensors(
        directory / checkpoint.SINGLE,
        {name: (dtype, shape) for name, shape in shapes.items()},
        lambda name: np.ones(shapes[name], numpy_dtype),
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure resident memory")
@pytest.mark.parametrize(
    ("family", "stored", "dtype", "tensor"),
    [
        ("llama", "F32", "float32", 1),
        ("llama", "F32", "bfloat16", 1),
        ("llama", "BF16", "float32", 1),
        ("llama", "F32", "float32", 2),
        ("gpt2", "F32", "bfloat16", 2),
    ],
)
def test_peak_memory(tmp_path: Path, family: str, stored: str, dtype: str, tensor: int) -> None:
    """Resident memory beyond the loaded arrays stays under 1.3 times the largest tensor's shard."""
    write_wide(tmp_path / "wide", family, 2048, 8192, stored)
    write_wide(tmp_path / "small", family, 64, 256, stored)
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={tensor}"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "wide"), str(tensor), dtype, str(tmp_path / "small")],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["beyond"] < 1.3 * measured["largest_shard"], measured
