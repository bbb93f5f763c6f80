"""The engine's explicit state: the cache, and one entry per row of all that decoding needs to know."""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.sampling import Counts, SamplingRows


class Cache(NamedTuple):
    """What is large and donated from program to program.

    Attributes:
      layers: keys and values of max_rows slots.
      counts: tokens that each slot's request has had.
    """

    layers: Layers
    counts: Counts


class Rows(NamedTuple):
    """What is small: one entry per row.

    Attributes:
      token: newest token, which the next iteration reads.
      position: of that token; everything before it is in the cache.
      generated: output tokens so far.
      active: the row decodes.
      wanted: how to sample.
    """

    token: Int[Array, "rows"]
    position: Int[Array, "rows"]
    generated: Int[Array, "rows"]
    active: Bool[Array, "rows"]
    wanted: SamplingRows


# What a stage that does not sample has in their place: programs map over either alike.
NO_COUNTS = cast(Counts, ())
NO_ROWS = cast(Rows, ())


class State(NamedTuple):
    cache: Cache
    rows: Rows


class Payload(NamedTuple):
    """Prompts that were encoded and wait for a slot: their cache, their token counts, and their rows to be."""

    layers: Layers
    counts: Counts
    rows: Rows


class Block(NamedTuple):
    """What a phase computed: tokens of all iterations, and log-probabilities where a row asked for them.

    Attributes:
      tokens: [iterations, rows, 1].
      counts: valid tokens of each row in each iteration.
      done: the row holds no running request.
      chosen, top_ids, top: log-probabilities.
    """

    tokens: Int[Array, "iterations rows width"]
    counts: Int[Array, "iterations rows"]
    done: Bool[Array, "rows"]
    chosen: Float[Array, "iterations rows"]
    top_ids: Int[Array, "iterations rows logprobs"]
    top: Float[Array, "iterations rows logprobs"]


class Feed(NamedTuple):
    """What an iteration of some rows begins with: it travels from stage to stage.

    Attributes:
      x: newest tokens [rows, 1], or what the stages before made of them [rows, 1, embed].
      position: of those tokens; -1 where a row does not decode.
      prompt_tokens: how long each row's prompt is, where the decoder attends to it apart; None: nothing to carry.
    """

    x: Int[Array, "rows 1"] | Float[Array, "rows 1 embed"]
    position: Int[Array, "rows"]
    prompt_tokens: Int[Array, "rows"] | None


def accept(
    rows: Rows, going: Bool[Array, "rows"], token: Int[Array, "rows"], position: Int[Array, "rows"], length: int
) -> Rows:
    """Rows after a new token at `position` in those that are `going`.

    A row ends at a stop token, at max_tokens, or where its slot is full.
    """
    generated = rows.generated + 1
    stopped = jnp.any(token[:, None] == rows.wanted.stop_ids, axis=-1)
    ends = stopped | (generated >= rows.wanted.max_tokens) | (position >= length)
    return Rows(
        token=jnp.where(going, token, rows.token),
        position=jnp.where(going, position, rows.position),
        generated=jnp.where(going, generated, rows.generated),
        active=rows.active & ~(going & ends),
        wanted=rows.wanted,
    )


def count(counts: Counts, token: Int[Array, "rows"], happened: Bool[Array, "rows"]) -> Counts:
    """Counts after one more output token in the rows where it happened; they may hold further rows behind these."""
    where = jnp.where(happened, token, counts.output.shape[1])
    return Counts(counts.output.at[jnp.arange(token.shape[0]), where].add(1, mode="drop"), counts.prompt)


def put_rows(rows: Rows, new: Rows, slots: Int[Array, "new"]) -> Rows:
    """`rows` with new entries at their slots; slots beyond the end are dropped."""
    return jax.tree.map(lambda held, entry: held.at[slots].set(entry, mode="drop"), rows, new)


def take_rows(rows: Rows, slots: Int[Array, "taken"]) -> Rows:
    return jax.tree.map(lambda held: jnp.take(held, slots, axis=0, mode="clip"), rows)
