"""The parts every decoder is made of: linear maps, norms, activations, the feed-forward layer.

Modules here are definitions: they are built under `nnx.eval_shape`, so initial values are never computed, and run
inside compiled programs. Each parameter carries `axes`, the logical name of every dimension (see
`exegpt_jax.sharding.rules`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from solver.facts.model_spec import Activation, ModelSpec

Axes = tuple[str | None, ...]

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def precision(dtype: jnp.dtype) -> lax.Precision:
    """Accelerators would multiply float32 in fewer bits by default; float32 here means float32."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def param(shape: tuple[int, ...], dtype: jnp.dtype, axes: Axes) -> nnx.Param[Array]:
    return nnx.Param(jnp.zeros(shape, dtype), axes=axes)


def linear(
    x: Float[Array, "*rest inputs"],
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, "outputs"] | None = None,
) -> Float[Array, "*rest outputs"]:
    """x @ weight.T + bias: every product with a weight goes through here.

    Weights lie [outputs, inputs], as most checkpoints store them: on CPU the products of a decode step then take 0.9,
    0.8 and 0.6 times as long at 1, 8 and 32 rows as with [inputs, outputs] (768 wide, float32, jax 0.10 and 0.12).
    There, too, one row in bfloat16 takes four times as long as two, so it gets a companion.
    """
    if x.size == x.shape[-1] and x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        pair = linear(jnp.concatenate([x.reshape(1, -1), jnp.zeros((1, x.shape[-1]), x.dtype)]), weight, bias)
        return pair[:1].reshape(*x.shape[:-1], -1)
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    y = lax.dot_general(x, weight, contract, precision=precision(x.dtype), preferred_element_type=x.dtype)
    return y if bias is None else y + lax.expand_dims(bias, range(y.ndim - 1))


class Linear(nnx.Module):
    """A weight [outputs, inputs] and perhaps a bias; `axes` names both, outputs first."""

    def __init__(self, outputs: int, inputs: int, axes: tuple[str, str], bias: bool, dtype: jnp.dtype) -> None:
        self.weight = param((outputs, inputs), dtype, axes)
        self.bias = param((outputs,), dtype, axes[:1]) if bias else None

    def __call__(self, x: Float[Array, "*rest inputs"]) -> Float[Array, "*rest outputs"]:
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class Norm(nnx.Module):
    """RMS or layer normalisation over the last dimension, computed in float32."""

    def __init__(self, size: int, kind: str, eps: float, axis: str | None, dtype: jnp.dtype) -> None:
        self.eps = eps
        self.weight = param((size,), dtype, (axis,))
        self.bias = param((size,), dtype, (axis,)) if kind == "layer" else None

    def __call__(self, x: Float[Array, "*rest size"]) -> Float[Array, "*rest size"]:
        y = x.astype(jnp.float32)
        if self.bias is not None:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        ahead = range(y.ndim - 1)
        y = y * lax.expand_dims(self.weight[...].astype(jnp.float32), ahead)
        if self.bias is not None:
            y = y + lax.expand_dims(self.bias[...].astype(jnp.float32), ahead)
        return y.astype(x.dtype)


class MLP(nnx.Module):
    """The feed-forward layer: gated (Llama) or plain (GPT-2, OPT)."""

    def __init__(self, spec: ModelSpec, dtype: jnp.dtype) -> None:
        wide, bias = (spec.mlp_size, spec.hidden_size), spec.mlp_bias
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = Linear(*wide, ("mlp", "embed"), bias, dtype) if spec.gated_mlp else None
        self.up = Linear(*wide, ("mlp", "embed"), bias, dtype)
        self.down = Linear(*wide[::-1], ("embed", "mlp"), bias, dtype)

    def __call__(self, x: Float[Array, "rows tokens embed"]) -> Float[Array, "rows tokens embed"]:
        up = self.up(x)
        hidden = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.down(hidden)
