"""Causal attention with grouped query heads, over a cache or over its own keys and values.

Key/value heads are never repeated in memory: the query heads that share one are rows of the same matrix product, so a
decode step is one batched product [group, head_dim] x [head_dim, length] per row and key/value head. Scores and
softmax are float32. The index of a key in a view is its position, hence the mask needs no lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int

from exegpt_jax.models.cache_ops import CacheOps, Layer
from exegpt_jax.models.layers import Linear, Norm, precision
from exegpt_jax.models.rope import rotate
from solver.facts.model_spec import LayerKind, ModelSpec

# Finite, so that a padding query that sees no key gets an average and not a NaN, which would spread through the cache.
MASKED = -1e30
# Scores of long prompts are computed by blocks of queries; this bounds their memory, and skips keys ahead of a block.
BLOCK_QUERIES = 256
MAX_BLOCKS = 8


def attend(
    q: Float[Array, "rows tokens heads head_dim"],
    keys: Float[Array, "rows kv_heads length head_dim"],
    values: Float[Array, "rows kv_heads length head_dim"],
    positions: Int[Array, "rows tokens"],
    window: int | None,
    first_key: int = 0,
) -> Float[Array, "rows tokens heads_x_head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v over keys at positions first_key, first_key + 1, ... up to each query's own."""
    rows, tokens, heads, head_dim = q.shape
    kv_heads, length = keys.shape[1:3]
    group = heads // kv_heads
    dtype = jnp.promote_types(q.dtype, keys.dtype)
    keys, values = keys.astype(dtype), values.astype(dtype)
    # Queries that share a key/value head lie side by side: token by token, and within a token by group.
    grouped = q.astype(dtype).reshape(rows, tokens, kv_heads, group, head_dim).swapaxes(1, 2)
    grouped = grouped.reshape(rows, kv_heads, tokens * group, head_dim)
    scores = lax.dot_general(
        grouped, keys, (((3,), (3,)), ((0, 1), (0, 1))), precision=precision(dtype), preferred_element_type=jnp.float32
    )
    at = jnp.repeat(positions, group, axis=1)[:, None, :, None]
    key = lax.broadcasted_iota(jnp.int32, (1, 1, 1, length), 3) + first_key
    seen = key <= at if window is None else (key <= at) & (key > at - window)
    scores = jnp.where(seen, scores * head_dim**-0.5, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = lax.dot_general(
        weights.astype(dtype),
        values,
        (((3,), (2,)), ((0, 1), (0, 1))),
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / total).reshape(rows, kv_heads, tokens, group, head_dim)
    return mixed.swapaxes(1, 2).reshape(rows, tokens, heads * head_dim).astype(q.dtype)


def attend_in_blocks(
    q: Float[Array, "rows tokens heads head_dim"],
    keys: Float[Array, "rows kv_heads length head_dim"],
    values: Float[Array, "rows kv_heads length head_dim"],
    positions: Int[Array, "rows tokens"],
    window: int | None,
    own_keys: bool,
) -> Float[Array, "rows tokens heads_x_head_dim"]:
    """`attend`, block by block of queries. `own_keys`: token i stands at position i, so later keys can be left out."""
    tokens = q.shape[1]
    block = max(BLOCK_QUERIES, -(-tokens // MAX_BLOCKS))
    outputs = []
    for begin in range(0, tokens, block):
        end = min(begin + block, tokens)
        first, last = 0, keys.shape[2]
        if own_keys:
            first, last = max(0, begin - window + 1) if window else 0, end
        part = (q[:, begin:end], keys[:, :, first:last], values[:, :, first:last], positions[:, begin:end])
        outputs.append(attend(*part, window, first))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


class Attention(nnx.Module):
    """Projections, head norms, rotation, cache and `attend` of one layer."""

    def __init__(self, spec: ModelSpec, kind: LayerKind, tensor: int, dtype: jnp.dtype) -> None:
        embed = spec.hidden_size
        wide, narrow = spec.heads * spec.head_dim, spec.stored_kv_heads(tensor) * spec.head_dim
        self.head_dim = spec.head_dim
        self.rope = spec.rope
        self.window = kind.window_tokens
        self.q = Linear(wide, embed, ("heads", "embed"), spec.qkv_bias, dtype)
        self.k = Linear(narrow, embed, ("kv_heads", "embed"), spec.qkv_bias, dtype)
        self.v = Linear(narrow, embed, ("kv_heads", "embed"), spec.qkv_bias, dtype)
        self.out = Linear(embed, wide, ("embed", "heads"), spec.output_bias, dtype)
        self.q_norm = Norm(spec.head_dim, "rms", spec.norm_eps, None, dtype) if spec.qk_norm else None
        self.k_norm = Norm(spec.head_dim, "rms", spec.norm_eps, None, dtype) if spec.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "rows tokens embed"],
        positions: Int[Array, "rows tokens"],
        layer: Layer | None,
        ops: CacheOps[Layer],
    ) -> tuple[Float[Array, "rows tokens embed"], Layer]:
        """Attends over the layer's cache after writing to it; without a layer, over its own keys from position 0."""
        with jax.named_scope("project"):
            q, k, v = (self._heads(project(x)) for project in (self.q, self.k, self.v))
            q = q if self.q_norm is None else self.q_norm(q)
            k = k if self.k_norm is None else self.k_norm(k)
            if self.rope is not None:
                q, k = rotate(q, positions, self.rope), rotate(k, positions, self.rope)
        if layer is None:
            with jax.named_scope("attend"):
                own = k.swapaxes(1, 2), v.swapaxes(1, 2)
                mixed = attend_in_blocks(q, *own, positions, self.window, own_keys=True)
            layer = ops.fresh(k, v)
        else:
            with jax.named_scope("cache"):
                layer = ops.write(layer, k, v, positions)
                keys, values = ops.view(layer)
            with jax.named_scope("attend"):
                mixed = attend_in_blocks(q, keys, values, positions, self.window, own_keys=False)
        with jax.named_scope("output"):
            return self.out(mixed), layer

    def _heads(self, x: Float[Array, "rows tokens fused"]) -> Float[Array, "rows tokens heads head_dim"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)
