"""Decoder-only models: `embed`, `blocks[a:b]` and `head`, composed into what one stage holds.

One definition serves every family; a `ModelSpec` says which parts a model has. Nothing here asks which stage it is: a
stage without the first layer has no `embed`, one without the last no `head`. Per-token work is written once for
encode (whole prompts, no cache yet), for chunks and for decode (one token per row); only the cache argument differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from exegpt_jax.models.attention import Attention
from exegpt_jax.models.cache_ops import CacheOps, Layer
from exegpt_jax.models.layers import MLP, Norm, linear, param
from solver.facts.model_spec import LayerKind, ModelSpec

# The score of padded vocabulary entries: below every real one, finite so that no later arithmetic yields a NaN.
PADDING_SCORE = -1e30


class Embed(nnx.Module):
    """Token embedding and, where positions are learned, their table."""

    def __init__(self, spec: ModelSpec, tensor: int, dtype: jnp.dtype) -> None:
        self.offset = spec.position_offset
        self.tokens = param((spec.padded_vocab(tensor), spec.hidden_size), dtype, ("vocab", "embed"))
        learned = (spec.max_positions + spec.position_offset, spec.hidden_size)
        self.positions = param(learned, dtype, (None, "embed")) if spec.rope is None and spec.relative is None else None

    def __call__(
        self, tokens: Int[Array, "rows tokens"], positions: Int[Array, "rows tokens"]
    ) -> Float[Array, "rows tokens embed"]:
        # Padding (position -1) and ids out of range read some row: garbage that nobody reads, never a NaN.
        x = jnp.take(self.tokens[...], tokens, axis=0, mode="clip")
        if self.positions is None:
            return x
        return x + jnp.take(self.positions[...], positions + self.offset, axis=0, mode="clip")


class Block(nnx.Module):
    """One decoder layer, norms first."""

    def __init__(self, spec: ModelSpec, kind: LayerKind, tensor: int, dtype: jnp.dtype) -> None:
        self.attention_norm = Norm(spec.hidden_size, spec.norm, spec.norm_eps, "embed", dtype)
        self.attention = Attention(spec, kind, tensor, dtype)
        self.mlp_norm = Norm(spec.hidden_size, spec.norm, spec.norm_eps, "embed", dtype)
        self.mlp = MLP(spec, dtype)

    def __call__(
        self,
        x: Float[Array, "rows tokens embed"],
        positions: Int[Array, "rows tokens"],
        layer: Layer | None,
        ops: CacheOps[Layer],
    ) -> tuple[Float[Array, "rows tokens embed"], Layer]:
        """The layer's output and its cache with this call's keys and values; see `Attention`."""
        with jax.named_scope("attention"):
            mixed, cache = self.attention(self.attention_norm(x), positions, layer, ops)
            x = x + mixed
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), cache


class Head(nnx.Module):
    """Final norm and projection to the vocabulary; `tied` is the embedding where this stage holds it and it is tied."""

    def __init__(self, spec: ModelSpec, tensor: int, dtype: jnp.dtype, tied: nnx.Param[Array] | None = None) -> None:
        self.vocab_size = spec.vocab_size
        self.scale = spec.head_scale
        self.norm = Norm(spec.hidden_size, spec.norm, spec.norm_eps, "embed", dtype)
        shape = (spec.padded_vocab(tensor), spec.hidden_size)
        self.weight = param(shape, dtype, ("vocab", "embed")) if tied is None else tied

    def __call__(self, x: Float[Array, "*rest embed"]) -> Float[Array, "*rest padded_vocab"]:
        """Logits in float32; padded entries score PADDING_SCORE. Gather the tokens that need logits first."""
        with jax.named_scope("head"):
            normed = self.norm(x) if self.scale == 1.0 else self.norm(x) * self.scale
            logits = linear(normed, self.weight[...]).astype(jnp.float32)
            if logits.shape[-1] == self.vocab_size:
                return logits
            entry = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
            return jnp.where(entry < self.vocab_size, logits, PADDING_SCORE)


class StageModel(nnx.Module):
    """Layers [a, b) of a model, with the embedding if a is the first and the head if b is the end.

    Attributes:
      embed: or None.
      blocks: layer a first.
      head: or None; reads the embedding of the same stage where the model ties them, else holds its own weight.
    """

    def __init__(self, spec: ModelSpec, layers: tuple[int, int], tensor: int, dtype: jnp.dtype) -> None:
        first, end = layers
        if not 0 <= first < end <= spec.num_layers:
            raise ValueError(f"layers: {[first, end]} is no range of the model's {spec.num_layers} layers")
        self.embed = Embed(spec, tensor, dtype) if first == 0 else None
        # Any: other models of this interface have layers of other kinds.
        self.blocks: nnx.List[Any] = nnx.List(
            [Block(spec, kind, tensor, dtype) for kind in spec.layer_kinds()[first:end]]
        )
        shared = self.embed.tokens if self.embed is not None and spec.tied_embeddings else None
        self.head = Head(spec, tensor, dtype, shared) if end == spec.num_layers else None

    def forward(
        self,
        x: Int[Array, "rows tokens"] | Float[Array, "rows tokens embed"],
        positions: Int[Array, "rows tokens"],
        layers: Sequence[Layer] | None,
        ops: CacheOps[Layer],
        prompt_tokens: Int[Array, "rows"] | None = None,
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        """Runs the stage's embedding (if it has one: x are token ids) and blocks, not its head.

        Args:
          x: token ids, or the activations of the stage before.
          positions: of each token; -1 is padding, written nowhere and its output meaningless.
          layers: one cache per block; None where every row's prompt begins in this call at position 0.
          ops: the cache's functions.
          prompt_tokens: of each row; only decoders that attend to an encoded prompt need to know.

        Returns:
          Activations and the caches, one per block.
        """
        if self.embed is not None:
            with jax.named_scope("embed"):
                x = self.embed(x, positions)
        caches: list[Layer] = []
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"block{index}"):
                x, cache = block(x, positions, None if layers is None else layers[index], ops)
                caches.append(cache)
        return x, tuple(caches)
