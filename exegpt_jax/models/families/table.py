"""How a family's checkpoint names and lays out the weights of our modules.

A table says, for each of our parameters, which tensor it comes from, whether that tensor is transposed, and which
part of a fused tensor it is. The rest follows from the parameter's logical axes: "kv_heads" dimensions are repeated
head by head to the stored count, "vocab" dimensions are padded with zeros. All of it acts on each dimension apart, so
any slice of a parameter, such as one device's shard, is read from slices of the checkpoint (`read_slice`), and a
checkpoint's tensor is rebuilt from whole parameters (`rebuild`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from solver.facts.model_spec import ModelSpec

Axes = tuple[str | None, ...]


@runtime_checkable
class Sliceable(Protocol):
    """A tensor in a file that reads only what is asked for, such as a safetensors slice; a numpy array is one too."""

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where one of our parameters lies in a checkpoint.

    Attributes:
      path: ours; "{layer}" stands for the layer's number where all layers are named alike.
      name: the tensor's name in a full checkpoint of the family, with the same "{layer}".
      transpose: the tensor is [inputs, outputs]; ours is [outputs, inputs].
      part, parts: the tensor holds `parts` equal parameters one after another along our first dimension, this one
        being number `part`.
    """

    path: str
    name: str
    transpose: bool = False
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """All weights of a family.

    Attributes:
      weights: one entry per parameter that any configuration of the family has.
      prefix: checkpoints of the bare model lack it at the start of their names.
      outside: names that never carry the prefix.
      ignored: patterns (as in a shell) of tensors that hold no weight: causal masks, rotary tables, tied copies.
    """

    weights: tuple[Weight, ...]
    prefix: str
    outside: tuple[str, ...] = ("lm_head.weight",)
    ignored: tuple[str, ...] = ()

    def weight(self, path: str) -> Weight:
        """The entry of one parameter ("blocks.17.mlp.up.weight"), its layer filled in. Raises KeyError if none is."""
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        layer, pattern = ("", path) if found is None else (found[1], "blocks.{layer}." + found[2])
        for weight in self.weights:
            if weight.path in (path, pattern):
                return dataclasses.replace(weight, path=path, name=weight.name.replace("{layer}", layer))
        raise KeyError(path)

    def full_name(self, name: str) -> str:
        """A checkpoint's tensor name with the prefix that bare models leave out."""
        return name if name in self.outside or name.startswith(self.prefix) else self.prefix + name

    def is_ignored(self, name: str) -> bool:
        """Whether the tensor of this name (with or without prefix) holds no weight that a model needs."""
        return any(fnmatch.fnmatchcase(self.full_name(name), pattern) for pattern in self.ignored)


def logical_shape(spec: ModelSpec, axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    """A parameter's shape before heads are repeated and the vocabulary padded, given its stored shape."""
    sizes = {"vocab": spec.vocab_size, "kv_heads": spec.kv_heads * spec.head_dim}
    return tuple(size if axis is None else sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True))


def source_shape(weight: Weight, logical: Sequence[int]) -> tuple[int, ...]:
    """The shape of the checkpoint's tensor that holds a parameter of this logical shape."""
    shape = (logical[0] * weight.parts, *logical[1:])
    return shape[::-1] if weight.transpose else shape


def read_slice(
    weight: Weight, spec: ModelSpec, axes: Axes, shape: Sequence[int], index: Sequence[slice], source: Sliceable
) -> np.ndarray:
    """One slice of a parameter, read from the tensor that holds it; nothing beyond what the slice needs is read.

    Args:
      weight: its entry.
      spec: the model.
      axes: the parameter's logical axes.
      shape: its stored shape.
      index: the slice of the stored parameter, one per dimension, step 1, as jax shardings give them.
      source: the checkpoint's tensor.

    Returns:
      The slice, in the tensor's dtype.
    """
    logical = logical_shape(spec, axes, shape)
    wanted = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    ranges = [
        _source_range(spec, axis, stored, whole, begin, end)
        for axis, stored, whole, (begin, end) in zip(axes, shape, logical, wanted, strict=True)
    ]
    offset = weight.part * logical[0]
    ranges[0] = (ranges[0][0] + offset, ranges[0][1] + offset)
    slices = tuple(slice(begin, end) for begin, end in ranges)
    block = source[slices[::-1]].T if weight.transpose else source[slices]
    for dimension, (axis, stored, (begin, end)) in enumerate(zip(axes, shape, wanted, strict=True)):
        if axis == "kv_heads":
            block = _repeat_heads(block, dimension, spec, stored, begin, end)
        elif axis == "vocab":
            pad = [(0, 0)] * block.ndim
            pad[dimension] = (0, end - begin - block.shape[dimension])
            block = np.pad(block, pad) if pad[dimension][1] else block
    return block


def rebuild(weights: Sequence[Weight], spec: ModelSpec, axes: Axes, params: Sequence[np.ndarray]) -> np.ndarray:
    """The checkpoint's tensor from the whole stored parameters that make it up: the inverse of `read_slice`.

    `weights` and `params` hold every part of the tensor, once each; `axes` are those of each of them.
    """
    parts: list[np.ndarray] = [np.empty(0)] * len(params)
    for weight, param in zip(weights, params, strict=True):
        for dimension, axis in enumerate(axes):
            if axis == "kv_heads":
                param = _original_heads(param, dimension, spec)
            elif axis == "vocab":
                param = np.take(param, range(spec.vocab_size), axis=dimension)
        parts[weight.part] = param
    whole = np.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]
    return whole.T if weights[0].transpose else whole


def _source_range(spec: ModelSpec, axis: str | None, stored: int, whole: int, begin: int, end: int) -> tuple[int, int]:
    """What of one dimension must be read to make up [begin, end) of its stored form."""
    if axis == "kv_heads" and stored != whole:
        width = spec.head_dim * (stored // whole)
        return begin // width * spec.head_dim, -(-end // width) * spec.head_dim
    return min(begin, whole), min(end, whole)


def _repeat_heads(block: np.ndarray, dimension: int, spec: ModelSpec, stored: int, begin: int, end: int) -> np.ndarray:
    """Repeats each head that was read, then cuts to [begin, end) of the stored dimension."""
    repeats = stored // (spec.kv_heads * spec.head_dim)
    if repeats == 1:
        return block
    shape = block.shape
    heads = block.reshape(*shape[:dimension], -1, spec.head_dim, *shape[dimension + 1 :])
    wide = np.repeat(heads, repeats, axis=dimension).reshape(*shape[:dimension], -1, *shape[dimension + 1 :])
    start = begin // (spec.head_dim * repeats) * spec.head_dim * repeats
    return wide[(slice(None),) * dimension + (slice(begin - start, end - start),)]


def _original_heads(param: np.ndarray, dimension: int, spec: ModelSpec) -> np.ndarray:
    """The first copy of each repeated head."""
    shape = param.shape
    repeats = shape[dimension] // (spec.kv_heads * spec.head_dim)
    heads = param.reshape(*shape[:dimension], spec.kv_heads, repeats * spec.head_dim, *shape[dimension + 1 :])
    first = heads[(slice(None),) * (dimension + 1) + (slice(0, spec.head_dim),)]
    return first.reshape(*shape[:dimension], -1, *shape[dimension + 1 :])
