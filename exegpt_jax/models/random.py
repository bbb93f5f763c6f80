"""Stages with random weights, for tests and benchmarks.

A parameter's values depend on the seed and its path alone, not on the tensor degree or on the range of layers, so the
same seed is the same model however it is cut.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
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
        if path.endswith("norm.weight"):
            mean, spread = 1.0, 0.1
        elif len(leaf.shape) == 1:
            mean, spread = 0.0, 0.1
        else:
            mean, spread = 0.0, scale * (1.0 if path.startswith("embed") else leaf.shape[1] ** -0.5)
        make = _maker(spec, leaf.shape, leaf.axes, leaf.dtype, leaf.sharding)
        params.append(make(key, jnp.float32(mean), jnp.float32(spread)))
    return plan.bind(params)


@functools.lru_cache(maxsize=256)
def _maker(
    spec: ModelSpec, shape: tuple[int, ...], axes: Axes, dtype: jnp.dtype, sharding: NamedSharding
) -> Callable[[Array, Array, Array], Array]:
    """A program (one for all parameters of this shape) from a key, a mean and a spread to a stored parameter."""

    def make(key: Array, mean: Array, spread: Array) -> Array:
        x = mean + spread * jax.random.normal(key, logical_shape(spec, axes, shape), jnp.float32)
        for dimension, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            if axis == "vocab":
                pad = [(0, 0)] * x.ndim
                pad[dimension] = (0, size - x.shape[dimension])
                x = jnp.pad(x, pad)
            elif axis == "kv_heads":
                ahead, behind = x.shape[:dimension], x.shape[dimension + 1 :]
                heads = x.reshape(*ahead, spec.kv_heads, spec.head_dim, *behind)
                repeats = size // x.shape[dimension]
                x = jnp.repeat(heads, repeats, axis=dimension).reshape(*ahead, size, *behind)
        return x.astype(dtype)

    return jax.jit(make, out_shardings=sharding)
