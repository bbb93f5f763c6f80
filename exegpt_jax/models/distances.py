"""Learned biases on attention scores by the distance of query and key, as T5 has them.

A table [buckets, heads] holds them: short distances have a bucket each, longer ones share buckets that grow with the
logarithm, and all from `most_tokens` on share one. Which bucket a distance falls into is a constant of a program; it is
computed here in the float32 steps of the reference, since a rounding elsewhere would change buckets.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from solver.facts.model_spec import RelativePositions


def buckets_of(ahead: np.ndarray, relative: RelativePositions, *, both_ways: bool) -> np.ndarray:
    """The bucket of each distance, int32.

    Args:
      ahead: position of the key minus position of the query.
      relative: of the model.
      both_ways: keys ahead of the query have the upper half of the buckets (encoder); else none is seen (decoder).
    """
    count = relative.buckets // 2 if both_ways else relative.buckets
    distance = np.abs(ahead) if both_ways else np.maximum(-ahead, 0)
    single = count // 2
    times = np.maximum(distance, 1).astype(np.float32) / np.float32(single)
    share = np.log(times) / np.float32(math.log(relative.most_tokens / single))
    shared = single + (share * np.float32(count - single)).astype(np.int32)
    found = np.where(distance < single, distance, np.minimum(shared, count - 1))
    return (found + (np.where(ahead > 0, count, 0) if both_ways else 0)).astype(np.int32)


def prompt_biases(
    table: Float[Array, "buckets heads"], relative: RelativePositions, tokens: int
) -> Float[Array, "1 heads tokens tokens"]:
    """Between every two tokens of a prompt, query first."""
    index = np.arange(tokens)
    buckets = buckets_of(index[None, :] - index[:, None], relative, both_ways=True)
    return jnp.take(table.astype(jnp.float32).T, buckets, axis=1)[None]


def output_biases(
    table: Float[Array, "buckets heads"],
    relative: RelativePositions,
    positions: Int[Array, "rows tokens"],
    length: int,
) -> Float[Array, "rows heads tokens length"]:
    """Between tokens at `positions` and every key of a view; keys behind a token, which it does not see, get any."""
    by_distance = jnp.take(
        table.astype(jnp.float32).T, buckets_of(-np.arange(length), relative, both_ways=False), axis=1
    )
    distance = positions[:, :, None] - jnp.arange(length)[None, None, :]
    return jnp.take(by_distance, distance, axis=1, mode="clip").swapaxes(0, 1)
