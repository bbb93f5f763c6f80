"""A stage as an Orbax checkpoint of its sharded state, and back onto a mesh of the same or another tensor degree.

Arrays are stored as they lie on the mesh, every device writing its shard, and the manifest records the degree. The same
degree restores as it is; for another one the vocabulary's padding is cut or grown and repeated key/value heads are
reduced to the originals and repeated anew: both are exact. Orbax writes arrays (OCDBT, zarr) and JSON, no pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from exegpt_jax.sharding.stage import Blueprint, Leaf, Stage
from exegpt_jax.weights import manifest
from solver.facts.model_spec import ModelSpec

# Parameters restored at once: enough to read in parallel, and a bound on what a changed degree needs beside them.
GROUP_BYTES = 1 << 30


def save(stage: Stage, source: Path, source_digest: str, output: Path) -> None:
    """Writes a checkpoint directory, whole or not at all.

    Args:
      stage: what to store.
      source: model directory whose configuration and tokenizer are copied.
      source_digest: its `checkpoint_digest`.
      output: does not exist yet.

    Raises:
      ValueError: `output` exists.
    """
    state = {leaf.path: param for leaf, param in zip(stage.blueprint.leaves, stage.params, strict=True)}
    with manifest.complete_directory(output) as directory:
        with _checkpointer() as checkpointer:
            checkpointer.save(directory.absolute() / manifest.STATE, args=ocp.args.PyTreeSave(state))
        manifest.copy_settings(source, directory, stage.dtype)
        manifest.write_manifest(
            directory,
            manifest.Manifest(
                dtype=stage.dtype,
                tensor=stage.stage.tensor,
                layers=stage.stage.layers,
                source_digest=source_digest,
                parameters={path: param.shape for path, param in state.items()},
                files=manifest.seal(directory),
            ),
        )


def restore(directory: Path, plan: Blueprint, progress: Callable[[str, int, int], None]) -> Stage:
    """Verifies every file, then restores the blueprint's parameters.

    Raises:
      ValueError: one line: a truncated or altered checkpoint, or one that does not hold what the blueprint needs.
    """
    stored = manifest.verify(directory)
    for leaf in plan.leaves:
        _check(directory, plan.spec, leaf, stored.parameters.get(leaf.path))
    total_bytes = sum(_bytes(leaf) for leaf in plan.leaves)
    done_bytes = 0
    params: list[jax.Array] = []
    with _checkpointer() as checkpointer:
        for group in _groups(plan.leaves):
            arrays = _restore_group(checkpointer, directory, group, stored.parameters)
            for leaf, array in zip(group, arrays, strict=True):
                params.append(_regroup(plan.spec, leaf, array))
                done_bytes += _bytes(leaf)
                progress(leaf.path, done_bytes, total_bytes)
    return plan.bind(params)


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False))


def _bytes(leaf: Leaf) -> int:
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize


def _groups(leaves: tuple[Leaf, ...]) -> Iterator[list[Leaf]]:
    group: list[Leaf] = []
    for leaf in leaves:
        if group and sum(map(_bytes, group)) + _bytes(leaf) > GROUP_BYTES:
            yield group
            group = []
        group.append(leaf)
    yield group


def _restore_group(
    checkpointer: ocp.Checkpointer, directory: Path, group: list[Leaf], stored: Mapping[str, tuple[int, ...]]
) -> list[jax.Array]:
    """The group's arrays, in place; but heads repeated for another degree come whole to every device."""
    arguments = {}
    for leaf in group:
        resized = _heads_differ(leaf, stored[leaf.path])
        shape = stored[leaf.path] if resized else leaf.shape
        sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec()) if resized else leaf.sharding
        # strict=False lets Orbax cut or zero-fill up to the given shape: the vocabulary's padding.
        arguments[leaf.path] = ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=shape, dtype=leaf.dtype, strict=shape == stored[leaf.path]
        )
    wanted = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in group}
    restored = checkpointer.restore(
        directory.absolute() / manifest.STATE,
        args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
    )
    return [restored[leaf.path] for leaf in group]


def _check(directory: Path, spec: ModelSpec, leaf: Leaf, shape: tuple[int, ...] | None) -> None:
    """Raises ValueError unless a stored parameter of this shape (None: absent) can become the leaf."""
    if shape is None:
        raise ValueError(f"{directory}: does not hold {leaf.path}; convert the whole model again, from its safetensors")
    width = spec.kv_heads * spec.head_dim
    for axis, size, found in zip(leaf.axes, leaf.shape, shape, strict=False):
        fits = {"vocab": found >= spec.vocab_size, "kv_heads": found > 0 and found % width == 0}
        if len(shape) != len(leaf.shape) or not fits.get(axis or "", found == size):
            raise ValueError(f"{directory}: {leaf.path} is {list(shape)}, but config.json makes it {list(leaf.shape)}")


def _heads_differ(leaf: Leaf, shape: tuple[int, ...]) -> bool:
    return any(axis == "kv_heads" and a != b for axis, a, b in zip(leaf.axes, leaf.shape, shape, strict=True))


def _regroup(spec: ModelSpec, leaf: Leaf, array: jax.Array) -> jax.Array:
    """Repeats each original key/value head as often as the leaf stores it."""
    if array.shape == leaf.shape:
        return array
    regroup = jax.jit(functools.partial(_repeat_heads, spec, leaf), out_shardings=leaf.sharding)
    return regroup(array).block_until_ready()


def _repeat_heads(spec: ModelSpec, leaf: Leaf, array: jax.Array) -> jax.Array:
    dimension = leaf.axes.index("kv_heads")
    before, after = array.shape[:dimension], array.shape[dimension + 1 :]
    copies = array.reshape(*before, spec.kv_heads, -1, spec.head_dim, *after)
    first = jax.lax.slice_in_dim(copies, 0, 1, axis=dimension + 1)
    times = leaf.shape[dimension] // (spec.kv_heads * spec.head_dim)
    return jnp.repeat(first, times, axis=dimension + 1).reshape(leaf.shape)
