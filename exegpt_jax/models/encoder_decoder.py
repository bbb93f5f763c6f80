"""Encoder-decoder models (T5, T5 v1.1, Flan-T5): encoder layers, then decoder layers, cut into stages like any others.

    encode:  tokens -> [embed, encoder layers, norm] -> every decoder layer's keys and values of the prompt
    decode:  newest token -> [embed, decoder layers, head] -> scores

A row of the cache holds, in every decoder layer, the prompt's keys and values and behind them those of the output: the
token at output index i stands at position `prompt_tokens` + i. Cross-attention sees what lies before `prompt_tokens`,
self-attention what lies from there on, so that one cache, as long as prompt and output together, serves both.

The interface is `StageModel`'s: without caches `forward` encodes, with caches it decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from exegpt_jax.models.attention import BLOCK_QUERIES, MASKED, MAX_BLOCKS
from exegpt_jax.models.cache_ops import CacheOps, Layer
from exegpt_jax.models.decoder import Embed, Head, StageModel
from exegpt_jax.models.distances import output_biases, prompt_biases
from exegpt_jax.models.layers import MLP, Linear, Norm, param, precision
from solver.facts.model_spec import ModelSpec


def attend(
    q: Float[Array, "rows tokens heads head_dim"],
    keys: Float[Array, "rows heads length head_dim"],
    values: Float[Array, "rows heads length head_dim"],
    seen: Bool[Array, "rows #heads #tokens length"],
    biases: Float[Array, "#rows heads tokens length"] | None,
) -> Float[Array, "rows tokens heads_x_head_dim"]:
    """softmax(q k^T + biases) v over the keys that are seen: scores are not divided by sqrt(head_dim)."""
    rows, tokens, heads, head_dim = q.shape
    dtype = jnp.promote_types(q.dtype, keys.dtype)
    exact = precision(dtype)
    q, keys, values = (x.astype(dtype) for x in (q.swapaxes(1, 2), keys, values))
    contract = (((3,), (3,)), ((0, 1), (0, 1)))
    scores = lax.dot_general(q, keys, contract, precision=exact, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores if biases is None else scores + biases, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    contract = (((3,), (2,)), ((0, 1), (0, 1)))
    mixed = lax.dot_general(
        weights.astype(dtype), values, contract, precision=exact, preferred_element_type=jnp.float32
    )
    return (mixed / total).swapaxes(1, 2).reshape(rows, tokens, heads * head_dim).astype(q.dtype)


class Projections(nnx.Module):
    """Query, key, value and output of one attention; no biases."""

    def __init__(self, spec: ModelSpec, tensor: int, dtype: jnp.dtype) -> None:
        embed, wide, narrow = spec.hidden_size, spec.heads * spec.head_dim, spec.stored_kv_heads(tensor) * spec.head_dim
        self.head_dim = spec.head_dim
        self.q = Linear(wide, embed, ("heads", "embed"), False, dtype)
        self.k = Linear(narrow, embed, ("kv_heads", "embed"), False, dtype)
        self.v = Linear(narrow, embed, ("kv_heads", "embed"), False, dtype)
        self.out = Linear(embed, wide, ("embed", "heads"), False, dtype)

    def query(self, x: Float[Array, "rows tokens embed"]) -> Float[Array, "rows tokens heads head_dim"]:
        return self._heads(self.q(x))

    def keys_and_values(
        self, x: Float[Array, "rows tokens embed"]
    ) -> tuple[Float[Array, "rows tokens heads head_dim"], Float[Array, "rows tokens heads head_dim"]]:
        return self._heads(self.k(x)), self._heads(self.v(x))

    def _heads(self, x: Float[Array, "rows tokens fused"]) -> Float[Array, "rows tokens heads head_dim"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class EncoderBlock(nnx.Module):
    """One encoder layer: every token of a prompt attends to all of it."""

    def __init__(self, spec: ModelSpec, tensor: int, dtype: jnp.dtype) -> None:
        self.attention_norm = _norm(spec, dtype)
        self.attention = Projections(spec, tensor, dtype)
        self.mlp_norm = _norm(spec, dtype)
        self.mlp = MLP(spec, dtype)

    def __call__(
        self,
        x: Float[Array, "rows tokens embed"],
        seen: Bool[Array, "rows 1 1 tokens"],
        biases: Float[Array, "1 heads tokens tokens"],
    ) -> Float[Array, "rows tokens embed"]:
        with jax.named_scope("attention"):
            x = x + self.attend(x, seen, biases)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x))

    def attend(
        self,
        x: Float[Array, "rows tokens embed"],
        seen: Bool[Array, "rows 1 1 tokens"],
        biases: Float[Array, "1 heads tokens tokens"],
    ) -> Float[Array, "rows tokens embed"]:
        """What attention adds to `x`; scores are computed block by block of queries."""
        x = self.attention_norm(x)
        q, (k, v) = self.attention.query(x), self.attention.keys_and_values(x)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        tokens = x.shape[1]
        block = max(BLOCK_QUERIES, -(-tokens // MAX_BLOCKS))
        parts = [
            attend(q[:, begin : begin + block], k, v, seen, biases[:, :, begin : begin + block])
            for begin in range(0, tokens, block)
        ]
        return self.attention.out(parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1))


class Sight(NamedTuple):
    """What the tokens of one decode call see of a view, the same in every layer.

    Attributes:
      positions: of the tokens; -1 is padding.
      output: keys that self-attention sees: from the end of the prompt to the token's own.
      prompt: keys that cross-attention sees.
      biases: of self-attention.
    """

    positions: Int[Array, "rows tokens"]
    output: Bool[Array, "rows 1 tokens length"]
    prompt: Bool[Array, "rows 1 1 length"]
    biases: Float[Array, "rows heads tokens length"]


def sight_of(
    spec: ModelSpec,
    table: Float[Array, "buckets heads"],
    positions: Int[Array, "rows tokens"],
    prompt_tokens: Int[Array, "rows"],
    length: int,
) -> Sight:
    """The same for a view of `length` positions; `table` are the decoder's distances."""
    assert spec.relative is not None
    key = lax.broadcasted_iota(jnp.int32, (1, 1, 1, length), 3)
    own = prompt_tokens[:, None, None, None]
    output = (key >= own) & (key <= positions[:, None, :, None])
    return Sight(positions, output, key < own, output_biases(table, spec.relative, positions, length))


class DecoderBlock(nnx.Module):
    """One decoder layer: attends to the output so far, then to the prompt."""

    def __init__(self, spec: ModelSpec, tensor: int, dtype: jnp.dtype) -> None:
        self.attention_norm = _norm(spec, dtype)
        self.attention = Projections(spec, tensor, dtype)
        self.cross_norm = _norm(spec, dtype)
        self.cross = Projections(spec, tensor, dtype)
        self.mlp_norm = _norm(spec, dtype)
        self.mlp = MLP(spec, dtype)

    def fresh(self, encoded: Float[Array, "rows tokens embed"], ops: CacheOps[Layer]) -> Layer:
        """A cache that holds the prompt."""
        with jax.named_scope("prompt"):
            return ops.fresh(*self.cross.keys_and_values(encoded))

    def __call__(
        self,
        x: Float[Array, "rows tokens embed"],
        sight: Sight,
        layer: Layer,
        ops: CacheOps[Layer],
    ) -> tuple[Float[Array, "rows tokens embed"], Layer]:
        with jax.named_scope("attention"):
            mixed, layer = self.attend_to_output(x, sight, layer, ops)
            x = x + mixed
        with jax.named_scope("cross"):
            x = x + self.attend_to_prompt(x, sight, layer, ops)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), layer

    def attend_to_output(
        self, x: Float[Array, "rows tokens embed"], sight: Sight, layer: Layer, ops: CacheOps[Layer]
    ) -> tuple[Float[Array, "rows tokens embed"], Layer]:
        """What self-attention adds to `x`, and the cache with these tokens."""
        x = self.attention_norm(x)
        layer = ops.write(layer, *self.attention.keys_and_values(x), sight.positions)
        mixed = attend(self.attention.query(x), *ops.view(layer), sight.output, sight.biases)
        return self.attention.out(mixed), layer

    def attend_to_prompt(
        self, x: Float[Array, "rows tokens embed"], sight: Sight, layer: Layer, ops: CacheOps[Layer]
    ) -> Float[Array, "rows tokens embed"]:
        """What cross-attention adds to `x`."""
        mixed = attend(self.cross.query(self.cross_norm(x)), *ops.view(layer), sight.prompt, None)
        return self.cross.out(mixed)


class EncoderDecoderStage(StageModel):
    """Layers [a, b) of an encoder-decoder model.

    Attributes:
      embed: where the first encoder layer or the first decoder layer is here; or None.
      encoder_distances, decoder_distances: biases [buckets, heads] where layers of that stack are here.
      encoder_norm: where the last encoder layer is here.
      blocks: layer a first.
      head: where the last decoder layer is here; reads the embedding of the same stage where the model ties them.
    """

    def __init__(self, spec: ModelSpec, layers: tuple[int, int], tensor: int, dtype: jnp.dtype) -> None:
        first, end = layers
        if not 0 <= first < end <= spec.num_layers:
            raise ValueError(f"layers: {[first, end]} is no range of the model's {spec.num_layers} layers")
        assert spec.relative is not None
        encoders = spec.encoder_layers
        self.spec = spec
        self.encoders = max(0, min(end, encoders) - first)
        self.embed = Embed(spec, tensor, dtype) if first == 0 or first <= encoders < end else None
        shape = (spec.relative.buckets, spec.heads)
        self.encoder_distances = param(shape, dtype, (None, "heads")) if first < encoders else None
        self.decoder_distances = param(shape, dtype, (None, "heads")) if end > encoders else None
        self.encoder_norm = _norm(spec, dtype) if first < encoders <= end else None
        kinds = spec.layer_kinds()[first:end]
        makers = [EncoderBlock if kind.name == "encoder" else DecoderBlock for kind in kinds]
        self.blocks = nnx.List([make(spec, tensor, dtype) for make in makers])
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
        """Encodes prompts, or decodes.

        Args:
          x: token ids, or the activations of the stage before: of prompts, or of output.
          positions: of each token; -1 is padding.
          layers: one cache per decoder layer of the stage; None encodes.
          ops: the cache's functions.
          prompt_tokens: of each row, where it decodes.

        Returns:
          Activations (of prompts: the next stage's input, which decoder layers hand on as it is), and one cache per
          decoder layer.
        """
        if layers is None:
            return self._encode(x, positions, ops)
        assert prompt_tokens is not None
        return self._decode(x, positions, layers, ops, prompt_tokens)

    def _encode(
        self, x: Array, positions: Int[Array, "rows tokens"], ops: CacheOps[Layer]
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        if self.encoder_distances is not None:
            assert self.spec.relative is not None
            x = self._embedded(x, positions)
            seen = (positions >= 0)[:, None, None, :]
            biases = prompt_biases(self.encoder_distances[...], self.spec.relative, positions.shape[1])
            for index, block in enumerate(self.blocks[: self.encoders]):
                with jax.named_scope(f"encoder{index}"):
                    x = block(x, seen, biases)
            x = x if self.encoder_norm is None else self.encoder_norm(x)
        return x, tuple(block.fresh(x, ops) for block in self.blocks[self.encoders :])

    def _decode(
        self,
        x: Array,
        positions: Int[Array, "rows tokens"],
        layers: Sequence[Layer],
        ops: CacheOps[Layer],
        prompt_tokens: Int[Array, "rows"],
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        assert self.decoder_distances is not None
        x = self._embedded(x, positions)
        length = ops.view(layers[0])[0].shape[2]
        sight = sight_of(self.spec, self.decoder_distances[...], positions, prompt_tokens, length)
        caches: list[Layer] = []
        for index, block in enumerate(self.blocks[self.encoders :]):
            with jax.named_scope(f"decoder{index}"):
                x, cache = block(x, sight, layers[index], ops)
                caches.append(cache)
        return x, tuple(caches)

    def _embedded(self, x: Array, positions: Int[Array, "rows tokens"]) -> Float[Array, "rows tokens embed"]:
        """Token ids as activations; what comes from another stage is that already."""
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return x
        assert self.embed is not None
        with jax.named_scope("embed"):
            return self.embed(x, positions)


def _norm(spec: ModelSpec, dtype: jnp.dtype) -> Norm:
    return Norm(spec.hidden_size, spec.norm, spec.norm_eps, "embed", dtype)
