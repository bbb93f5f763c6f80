"""Stages with random weights, for tests and benchmarks.

A parameter's values depend on the seed and its path alone, not on the tensor degree or on the range of layers, so the
same seed is the same model however it is cut.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from exegpt_jax.models.families.table import Axes, logical_shape
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec


def random_stage(
    spec: ModelSpec,
    layers: tuple[int, int] | None = None,
    tensor: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    scale: float = 1.0,
) -> Stage:
    """A stage of random weights on the first `tensor` devices (or those given); `layers` defaults to all.

    `scale` multiplies the spread of the matrices; 2 or so separates the logits of tiny models well.
    """
    devices = list(jax.devices()[:tensor] if devices is None else devices)
    if len(devices) != tensor:
        raise ValueError(f"tensor: {tensor}, but {len(devices)} devices; give one per rank")
    stage = StageSpec("both", layers or (0, spec.num_layers), tuple(device.id for device in devices), tensor)
    plan = blueprint(spec, stage, dtype, make_mesh(devices))
    params = []
    for leaf in plan.leaves:
        # A head that ties to another stage's embedding is that embedding.
        path = "embed.tokens" if leaf.path == "head.weight" and spec.tied_embeddings else leaf.path
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        params.append(_random(key, spec, path, leaf.shape, leaf.axes, leaf.dtype, leaf.sharding, scale))
    return plan.bind(params)


def _random(
    key: jax.Array,
    spec: ModelSpec,
    path: str,
    shape: tuple[int, ...],
    axes: Axes,
    dtype: jnp.dtype,
    sharding: NamedSharding,
    scale: float,
) -> jax.Array:
    @functools.partial(jax.jit, out_shardings=sharding)
    def make(key: jax.Array) -> jax.Array:
        logical = logical_shape(spec, axes, shape)
        x = jax.random.normal(key, logical, jnp.float32)
        if path.endswith("norm.weight"):
            x = 1.0 + 0.1 * x
        elif len(shape) == 1:
            x = 0.1 * x
        else:
            x = x * (scale * (1.0 if path.startswith("embed") else shape[1] ** -0.5))
        for dimension, axis in enumerate(axes):
            if axis == "vocab":
                pad = [(0, 0)] * x.ndim
                pad[dimension] = (0, shape[dimension] - x.shape[dimension])
                x = jnp.pad(x, pad)
            elif axis == "kv_heads" and x.shape[dimension] != shape[dimension]:
                split = x.reshape(*x.shape[:dimension], spec.kv_heads, spec.head_dim, *x.shape[dimension + 1 :])
                repeats = shape[dimension] // x.shape[dimension]
                x = jnp.repeat(split, repeats, axis=dimension).reshape(shape)
        return x.astype(dtype)

    return make(key)
