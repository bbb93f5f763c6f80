"""Layers of encoder-decoder models: encoder blocks, decoder blocks with cross-attention, and what each may see.

Scores are not divided by sqrt(head_dim), biases by distance are added to them, and no projection has a bias.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from exegpt_jax.models.attention import BLOCK_QUERIES, MASKED, MAX_BLOCKS
from exegpt_jax.models.cache_ops import CacheOps, Layer
from exegpt_jax.models.distances import output_biases
from exegpt_jax.models.layers import MLP, Linear, Norm, precision
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
        self.attention_norm = norm_of(spec, dtype)
        self.attention = Projections(spec, tensor, dtype)
        self.mlp_norm = norm_of(spec, dtype)
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
        self.attention_norm = norm_of(spec, dtype)
        self.attention = Projections(spec, tensor, dtype)
        self.cross_norm = norm_of(spec, dtype)
        self.cross = Projections(spec, tensor, dtype)
        self.mlp_norm = norm_of(spec, dtype)
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


def norm_of(spec: ModelSpec, dtype: jnp.dtype) -> Norm:
    return Norm(spec.hidden_size, spec.norm, spec.norm_eps, "embed", dtype)
