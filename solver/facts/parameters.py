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
    encoders = spec.encoder_layers
    found = []
    # An encoder's layers read tokens, and so do its decoder's.
    embeds = any(first <= layer < end for layer in {0, encoders})
    if embeds:
        found += _embed(spec, tensor)
    found += _stacks(spec, layers)
    for layer, kind in enumerate(spec.layer_kinds()[first:end], first):
        found += [dataclasses.replace(p, path=f"blocks.{layer}.{p.path}") for p in _block(spec, tensor, kind.name)]
    if end == spec.num_layers:
        found += _norm(spec, "head.norm")
        if not (spec.tied_embeddings and embeds):
            found.append(Parameter("head.weight", (spec.padded_vocab(tensor), spec.hidden_size), ("vocab", "embed")))
    return tuple(found)


def _stacks(spec: ModelSpec, layers: tuple[int, int]) -> list[Parameter]:
    """What the encoder's and the decoder's layers of a range share, in encoder-decoder models."""
    first, end = layers
    encoders = spec.encoder_layers
    if not encoders or spec.relative is None:
        return []
    table = ((spec.relative.buckets, spec.heads), (None, "heads"))
    found = [Parameter("encoder_distances", *table)] if first < encoders else []
    if end > encoders:
        found.append(Parameter("decoder_distances", *table))
    return found + (_norm(spec, "encoder_norm") if first < encoders <= end else [])


def _embed(spec: ModelSpec, tensor: int) -> list[Parameter]:
    found = [Parameter("embed.tokens", (spec.padded_vocab(tensor), spec.hidden_size), ("vocab", "embed"))]
    if spec.rope is None and spec.relative is None:
        positions = spec.max_positions + spec.position_offset
        found.append(Parameter("embed.positions", (positions, spec.hidden_size), (None, "embed")))
    return found


@functools.lru_cache(maxsize=256)
def _block(spec: ModelSpec, tensor: int, kind: str) -> tuple[Parameter, ...]:
    """One layer's; a decoder layer that attends to an encoded prompt has the parameters for it besides."""
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
        *(_cross(spec, embed, heads, kv_heads) if kind == "cross" else ()),
        *_norm(spec, "mlp_norm"),
        *(_linear("mlp.gate", embed, mlp, spec.mlp_bias) if spec.gated_mlp else ()),
        *_linear("mlp.up", embed, mlp, spec.mlp_bias),
        *_linear("mlp.down", mlp, embed, spec.mlp_bias),
    )


def _cross(
    spec: ModelSpec, embed: tuple[str, int], heads: tuple[str, int], kv_heads: tuple[str, int]
) -> list[Parameter]:
    return [
        *_norm(spec, "cross_norm"),
        *_linear("cross.q", embed, heads, bias=False),
        *_linear("cross.k", embed, kv_heads, bias=False),
        *_linear("cross.v", embed, kv_heads, bias=False),
        *_linear("cross.out", heads, embed, bias=False),
    ]


def _linear(path: str, inputs: tuple[str, int], outputs: tuple[str, int], bias: bool) -> list[Parameter]:
    """A weight [outputs, inputs] and perhaps a bias."""
    (in_axis, in_size), (out_axis, out_size) = inputs, outputs
    weight = Parameter(f"{path}.weight", (out_size, in_size), (out_axis, in_axis))
    return [weight, Parameter(f"{path}.bias", (out_size,), (out_axis,))] if bias else [weight]


def _norm(spec: ModelSpec, path: str) -> list[Parameter]:
    kinds = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return [Parameter(f"{path}.{kind}", (spec.hidden_size,), ("embed",)) for kind in kinds]
