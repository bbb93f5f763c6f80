"""From a stage back to one safetensors file under the family's own names, bit for bit: the inverse of loading."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from exegpt_jax.models import families
from exegpt_jax.models.families.table import Weight, rebuild
from exegpt_jax.sharding.stage import Stage
from exegpt_jax.weights.checkpoint import SINGLE, expected_tensors
from exegpt_jax.weights.placing import slices
from exegpt_jax.weights.safetensors import FLOATS, write_safetensors


def save_safetensors(stage: Stage, directory: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Writes `model.safetensors` into a directory; a file that was there is replaced only by a complete one.

    Args:
      stage: the whole model; padding and repeated heads are left out again.
      directory: exists.
      progress: called after each tensor with its name, the bytes done and the bytes in all.

    Returns:
      The file.

    Raises:
      ValueError: the stage holds only some of the layers.
    """
    spec = stage.spec
    if stage.stage.layers != (0, spec.num_layers):
        raise ValueError(f"layers: the stage holds {list(stage.stage.layers)}; only a whole model can be written")
    parts = _parts(stage)
    dtype = next(name for name, stored in FLOATS.items() if stored.name == stage.dtype)
    expected = {name: shape for name, shape in expected_tensors(spec).items() if name in parts}
    total_bytes = sum(int(np.prod(shape)) for shape in expected.values()) * FLOATS[dtype].itemsize
    done_bytes = 0

    def read(name: str) -> np.ndarray:
        nonlocal done_bytes
        weights = [weight for weight, _ in parts[name]]
        leaves = [stage.blueprint.leaves[index] for _, index in parts[name]]
        whole = [_whole(stage, index) for _, index in parts[name]]
        tensor = rebuild(weights, spec, leaves[0].axes, whole)
        done_bytes += tensor.nbytes
        if progress:
            progress(name, done_bytes, total_bytes)
        return tensor

    unfinished = directory / f".{SINGLE}.{os.getpid()}"
    try:
        write_safetensors(unfinished, {name: (dtype, shape) for name, shape in expected.items()}, read)
        unfinished.replace(directory / SINGLE)
    finally:
        unfinished.unlink(missing_ok=True)
    return directory / SINGLE


def _parts(stage: Stage) -> dict[str, list[tuple[Weight, int]]]:
    """Tensor name -> the parameters that make it up, as (table entry, index into params)."""
    table = families.table(stage.spec)
    parts: dict[str, list[tuple[Weight, int]]] = {}
    for index, leaf in enumerate(stage.blueprint.leaves):
        weight = table.weight(leaf.path)
        parts.setdefault(weight.name, []).append((weight, index))
    return parts


def _whole(stage: Stage, index: int) -> np.ndarray:
    """One parameter, gathered on the host."""
    array = stage.params[index]
    whole = np.empty(array.shape, array.dtype)
    for part, values in slices(array):
        whole[part] = values
    return whole
