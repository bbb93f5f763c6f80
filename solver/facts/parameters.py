"""Every parameter of a model by path, shape and logical axes: checkpoints are checked and bytes counted by this list.

The Flax modules in `exegpt_jax.models` define the same parameters; a test keeps the two lists equal. This one needs no
jax, so a laptop can say what a model takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from solver.facts.model_spec import ModelSpec

# Logical axes along which the devices of a stage share a parameter; along any other it stands on each of them whole.
SHARED_AXES = frozenset({"vocab", "heads", "kv_heads", "mlp"})

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter as it is stored: key/value heads repeated and vocabulary padded to the tensor degree.

    Attributes:
      path: "blocks.17.attention.q.weight"; layers are numbered as in the whole model.
      shape: of the whole parameter, over all devices of the stage.
      axes: logical axis, or None, per dimension.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes

    def elements_per_device(self, tensor: int) -> int:
        """Elements that each of `tensor` devices holds."""
        return math.prod(self.shape) // (tensor if SHARED_AXES.intersection(self.axes) else 1)


@functools.lru_cache(maxsize=256)
def parameters(spec: ModelSpec, layers: tuple[int, int], tensor: int) -> tuple[Parameter, ...]:
    """All parameters of the layers [first, end), with the embedding and the head where the range reaches them."""
    first, end = layers
    found = []
    if first == 0:
        found += _embed(spec, tensor)
    for layer in range(first, end):
        found += [dataclasses.replace(p, path=f"blocks.{layer}.{p.path}") for p in _block(spec, tensor)]
    if end == spec.num_layers:
        found += _norm(spec, "head.norm")
        if not (spec.tied_embeddings and first == 0):
            found.append(Parameter("head.weight", (spec.padded_vocab(tensor), spec.hidden_size), ("vocab", "embed")))
    return tuple(found)


def _embed(spec: ModelSpec, tensor: int) -> list[Parameter]:
    found = [Parameter("embed.tokens", (spec.padded_vocab(tensor), spec.hidden_size), ("vocab", "embed"))]
    if spec.rope is None:
        positions = spec.max_positions + spec.position_offset
        found.append(Parameter("embed.positions", (positions, spec.hidden_size), (None, "embed")))
    return found


@functools.lru_cache(maxsize=256)
def _block(spec: ModelSpec, tensor: int) -> tuple[Parameter, ...]:
    """One layer's; kinds of layers differ in what they attend to, not in parameters."""
    embed, mlp = ("embed", spec.hidden_size), ("mlp", spec.mlp_size)
    heads = ("heads", spec.heads * spec.head_dim)
    kv_heads = ("kv_heads", spec.stored_kv_heads(tensor) * spec.head_dim)
    head_norms = [Parameter(f"attention.{x}_norm.weight", (spec.head_dim,), (None,)) for x in "qk"]
    return (
        *_norm(spec, "attention_norm"),
        *_linear("attention.q", embed, heads, spec.qkv_bias),
        *_linear("attention.k", embed, kv_heads, spec.qkv_bias),
        *_linear("attention.v", embed, kv_heads, spec.qkv_bias),
        *_linear("attention.out", heads, embed, spec.output_bias),
        *(head_norms if spec.qk_norm else ()),
        *_norm(spec, "mlp_norm"),
        *(_linear("mlp.gate", embed, mlp, spec.mlp_bias) if spec.gated_mlp else ()),
        *_linear("mlp.up", embed, mlp, spec.mlp_bias),
        *_linear("mlp.down", mlp, embed, spec.mlp_bias),
    )


def _linear(path: str, inputs: tuple[str, int], outputs: tuple[str, int], bias: bool) -> list[Parameter]:
    """A weight [outputs, inputs] and perhaps a bias."""
    (in_axis, in_size), (out_axis, out_size) = inputs, outputs
    weight = Parameter(f"{path}.weight", (out_size, in_size), (out_axis, in_axis))
    return [weight, Parameter(f"{path}.bias", (out_size,), (out_axis,))] if bias else [weight]


def _norm(spec: ModelSpec, path: str) -> list[Parameter]:
    kinds = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return [Parameter(f"{path}.{kind}", (spec.hidden_size,), ("embed",)) for kind in kinds]
