"""From a model directory to a stage: every parameter is read, slice by slice, straight onto the devices that hold it.

A slice is read and converted in chunks of a few megabytes into the buffer that the device takes, so a load needs one
slice of one parameter beside what is already loaded, whatever the dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from exegpt_jax.models import families
from exegpt_jax.models.families.table import Weight, read_slice
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Blueprint, Leaf, Stage, blueprint
from exegpt_jax.weights import manifest, orbax
from exegpt_jax.weights.checkpoint import check_tensors, open_checkpoint
from exegpt_jax.weights.placing import Index, place
from exegpt_jax.weights.safetensors import SCRATCH_BYTES, SafetensorsFile
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec

# Called after each parameter with its path, the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]


def load_stage(
    directory: Path,
    spec: ModelSpec,
    stage: StageSpec,
    dtype: str,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Stage:
    """Loads one stage of a model from safetensors or from an Orbax checkpoint that `exegpt convert` wrote.

    Args:
      directory: the model directory.
      spec: its `read_model_spec`.
      stage: which layers, on how many devices.
      dtype: of the loaded parameters.
      devices: one per tensor rank; those with the stage's ids if absent.
      progress: called after each parameter.

    Raises:
      ValueError: one line: a damaged or altered checkpoint, tensors that do not fit, or a stage that cannot be cut so.
    """
    plan = blueprint(spec, stage, dtype, make_mesh(_devices(stage) if devices is None else devices))
    if manifest.is_checkpoint(directory):
        return orbax.restore(directory, plan, progress or _silent)
    return _from_safetensors(directory, plan, progress or _silent)


def _silent(path: str, done_bytes: int, total_bytes: int) -> None:
    pass


def _devices(stage: StageSpec) -> list[jax.Device]:
    present = {device.id: device for device in jax.local_devices()}
    absent = [device for device in stage.devices if device not in present]
    if absent:
        raise ValueError(f"stages: device {absent[0]} is absent; this process has devices {sorted(present)}")
    return [present[device] for device in stage.devices]


def _from_safetensors(directory: Path, plan: Blueprint, progress: Progress) -> Stage:
    weights = families.table(plan.spec)
    total_bytes = plan_bytes(plan)
    done_bytes = 0
    params = []
    with open_checkpoint(directory) as files:
        names = check_tensors(directory, plan.spec, {name: file.tensors[name] for name, file in files.items()})
        for leaf in plan.leaves:
            weight = weights.weight(leaf.path)
            name = names[weight.name]
            params.append(_load(plan.spec, leaf, weight, _Tensor(files[name], name)))
            done_bytes += params[-1].nbytes
            progress(leaf.path, done_bytes, total_bytes)
    return plan.bind(params)


def plan_bytes(plan: Blueprint) -> int:
    """Bytes of all parameters of a stage, each counted once."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in plan.leaves)


class _Tensor:
    """One tensor of a file, read where it is indexed."""

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file = file
        self._name = name

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._file.read(self._name, index)


def _load(spec: ModelSpec, leaf: Leaf, weight: Weight, source: _Tensor) -> jax.Array:
    # Chunks follow the rows of the file, which are our columns where the file is transposed.
    along = len(leaf.shape) - 1 if weight.transpose else 0

    def read(index: Index, out: np.ndarray) -> None:
        step = max(1, SCRATCH_BYTES * out.shape[along] // max(1, out.size * 4))
        for first in range(0, out.shape[along], step):
            chunk = slice(first, min(first + step, out.shape[along]))
            part = list(index)
            part[along] = slice(index[along].start + chunk.start, index[along].start + chunk.stop)
            block = read_slice(weight, spec, leaf.axes, leaf.shape, part, source)
            np.copyto(out[(slice(None),) * along + (chunk,)], block, casting="unsafe")

    return place(leaf.shape, leaf.dtype, leaf.sharding, read)
