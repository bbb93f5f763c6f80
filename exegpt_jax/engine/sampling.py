"""Choosing the next token of every row, each by its own parameters, in one program of constant structure.

Order, as in vLLM: logit bias; repetition, presence and frequency penalties; stop tokens barred before min_tokens;
temperature; min-p; top-k; top-p; then the highest score after Gumbel noise, which samples from the softmax exactly.
Where scores tie at the edge of top-k or top-p, all of them stay.

A row's noise depends on its seed and the position of the token alone, hence not on its batch mates, its slot, the
number of devices or the schedule. What no row asks for is skipped by `lax.cond`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt32

from exegpt_jax.engine.api import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS, Sampling

GREEDY_BELOW = 1e-5
BARRED = -1e30
_NO_TOKEN = 2**31 - 1
_LOW = 2**32 - 1
_COLUMNS = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "repetition_penalty": np.float32,
    "max_tokens": np.int32,
    "min_tokens": np.int32,
}


class SamplingRows(NamedTuple):
    """The parameters of `api.Sampling`, one entry per row. Absent stop ids and biases have token id 2^31 - 1."""

    temperature: Float[Array, "rows"]
    top_k: Int[Array, "rows"]
    top_p: Float[Array, "rows"]
    min_p: Float[Array, "rows"]
    presence_penalty: Float[Array, "rows"]
    frequency_penalty: Float[Array, "rows"]
    repetition_penalty: Float[Array, "rows"]
    seed: UInt32[Array, "rows 2"]
    stop_ids: Int[Array, "rows stops"]
    bias_ids: Int[Array, "rows biases"]
    biases: Float[Array, "rows biases"]
    max_tokens: Int[Array, "rows"]
    min_tokens: Int[Array, "rows"]
    logprobs: Bool[Array, "rows"]


class Counts(NamedTuple):
    """Which tokens a row has had: what penalties need."""

    output: Int[Array, "rows vocab"]
    prompt: Bool[Array, "rows vocab"]


class Chosen(NamedTuple):
    """One token per row, and log-probabilities (zeros unless a row asks for them)."""

    token: Int[Array, "rows"]
    logprob: Float[Array, "rows"]
    top_ids: Int[Array, "rows logprobs"]
    top: Float[Array, "rows logprobs"]


def pack(requests: Sequence[Sampling], rows: int) -> SamplingRows:
    """Parameters of requests as NumPy arrays of `rows` entries, the rest greedy. Raises ValueError on long lists."""
    padded = [*requests, *[Sampling(max_tokens=0)] * (rows - len(requests))]
    for one in requests:
        if len(one.stop_ids) > MAX_STOP_IDS:
            raise ValueError(f"stop_token_ids: {len(one.stop_ids)} exceed the limit of {MAX_STOP_IDS}; give fewer")
        if len(one.logit_bias) > MAX_LOGIT_BIAS:
            raise ValueError(f"logit_bias: {len(one.logit_bias)} exceed the limit of {MAX_LOGIT_BIAS}; give fewer")
    stops = np.full((rows, MAX_STOP_IDS), _NO_TOKEN, np.int32)
    bias_ids = np.full((rows, MAX_LOGIT_BIAS), _NO_TOKEN, np.int32)
    biases = np.zeros((rows, MAX_LOGIT_BIAS), np.float32)
    for row, one in enumerate(requests):
        stops[row, : len(one.stop_ids)] = one.stop_ids
        for place, (token, bias) in enumerate(one.logit_bias):
            bias_ids[row, place], biases[row, place] = token, bias
    columns: dict[str, np.ndarray] = {
        name: np.array([getattr(one, name) for one in padded], dtype) for name, dtype in _COLUMNS.items()
    }
    columns["seed"] = np.array([[(one.seed >> 32) & _LOW, one.seed & _LOW] for one in padded], np.uint32)
    columns["logprobs"] = np.array([one.logprobs is not None for one in padded], np.bool_)
    columns |= {"stop_ids": stops, "bias_ids": bias_ids, "biases": biases}
    # Programs take NumPy arrays as they are; inside, they are traced.
    return SamplingRows(**cast("dict[str, Array]", columns))


def count_tokens(
    history: Int[Array, "rows tokens"], lengths: Int[Array, "rows"], generated: Int[Array, "rows"], vocab: int
) -> Counts:
    """Counts over the first `lengths` tokens of each row, of which the last `generated` are output."""
    rows, tokens = history.shape
    index = jnp.arange(tokens)[None, :]
    is_output = (index >= (lengths - generated)[:, None]) & (index < lengths[:, None])
    is_prompt = index < (lengths - generated)[:, None]
    row = jnp.arange(rows)[:, None]
    output = jnp.zeros((rows, vocab), jnp.int32).at[row, jnp.where(is_output, history, vocab)].add(1, mode="drop")
    prompt = jnp.zeros((rows, vocab), jnp.bool_).at[row, jnp.where(is_prompt, history, vocab)].set(True, mode="drop")
    return Counts(output, prompt)


def choose(
    logits: Float[Array, "rows vocab"],
    wanted: SamplingRows,
    counts: Counts,
    position: Int[Array, "rows"],
    generated: Int[Array, "rows"],
    active: Bool[Array, "rows"],
    vocab_size: int,
) -> Chosen:
    """The next token of each active row.

    Args:
      logits: float32; entries from vocab_size on are padding and lie far below all others.
      wanted: parameters.
      counts: tokens so far; may hold further rows behind these.
      position: of the token to choose; with the seed it fixes the noise.
      generated: output tokens before it.
      active: rows whose token anybody reads; what only others ask for costs nothing.
      vocab_size: entries that are tokens.
    """
    with jax.named_scope("sample"):
        sampled = active & (wanted.temperature >= GREEDY_BELOW)
        adjusted = lax.cond(
            jnp.any(active & _adjusts(wanted, generated)),
            lambda: _adjust(logits, wanted, counts, generated),
            lambda: logits,
        )
        token = lax.cond(
            jnp.any(sampled),
            lambda: jnp.argmax(_noisy(adjusted, wanted, sampled, position, vocab_size), axis=-1).astype(jnp.int32),
            lambda: jnp.argmax(adjusted, axis=-1).astype(jnp.int32),
        )
        return Chosen(token, *lax.cond(jnp.any(active & wanted.logprobs), _logprobs, _no_logprobs, logits, token))


def _adjusts(wanted: SamplingRows, generated: Int[Array, "rows"]) -> Bool[Array, "rows"]:
    """Rows whose scores change before sampling."""
    penalised = (wanted.presence_penalty != 0) | (wanted.frequency_penalty != 0) | (wanted.repetition_penalty != 1)
    return penalised | (wanted.bias_ids[:, 0] != _NO_TOKEN) | (generated < wanted.min_tokens)


def _adjust(
    logits: Float[Array, "rows vocab"], wanted: SamplingRows, counts: Counts, generated: Int[Array, "rows"]
) -> Float[Array, "rows vocab"]:
    rows = logits.shape[0]
    counts = Counts(counts.output[:rows], counts.prompt[:rows])
    # One update for biases and bars: a barred token stays far below all others, whatever the penalties make of it.
    early = (generated < wanted.min_tokens)[:, None]
    ids = jnp.concatenate([wanted.bias_ids, jnp.where(early, wanted.stop_ids, _NO_TOKEN)], axis=1)
    added = jnp.concatenate([wanted.biases, jnp.full(wanted.stop_ids.shape, BARRED)], axis=1)
    x = logits.at[jnp.arange(rows)[:, None], ids].add(added, mode="drop")
    seen = counts.prompt | (counts.output > 0)
    repetition = wanted.repetition_penalty[:, None]
    x = jnp.where(seen, jnp.where(x > 0, x / repetition, x * repetition), x)
    x = x - wanted.frequency_penalty[:, None] * counts.output
    return x - wanted.presence_penalty[:, None] * (counts.output > 0)


def _noisy(
    logits: Float[Array, "rows vocab"],
    wanted: SamplingRows,
    sampled: Bool[Array, "rows"],
    position: Int[Array, "rows"],
    vocab_size: int,
) -> Float[Array, "rows vocab"]:
    """Filtered scores plus noise; greedy rows unchanged."""
    x = logits / jnp.where(sampled, wanted.temperature, 1.0)[:, None]
    filtered = (wanted.top_k > 0) | (wanted.top_p < 1) | (wanted.min_p > 0)
    x = lax.cond(jnp.any(filtered & sampled), _filter, lambda x, wanted: x, x, wanted)

    def noise(seed: UInt32[Array, "2"], at: Int[Array, ""]) -> Float[Array, "vocab"]:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), at)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32)

    drawn = jnp.pad(jax.vmap(noise)(wanted.seed, position), ((0, 0), (0, x.shape[1] - vocab_size)))
    return jnp.where(sampled[:, None], x + drawn, logits)


def _filter(x: Float[Array, "rows vocab"], wanted: SamplingRows) -> Float[Array, "rows vocab"]:
    """min-p, then top-k, then top-p over what is left."""
    best = jnp.max(x, axis=-1, keepdims=True)
    # Well above the smallest normal number: the logarithm of less is not to be relied on.
    floor = jnp.where(wanted.min_p > 0, jnp.log(jnp.maximum(wanted.min_p, 1e-30)), -jnp.inf)[:, None]
    x = jnp.where(x >= best + floor, x, BARRED)
    falling = -jnp.sort(-x, axis=-1)
    last = jnp.where(wanted.top_k > 0, jnp.minimum(wanted.top_k, x.shape[1]), x.shape[1]) - 1
    rank = jnp.arange(x.shape[1])[None, :]
    kept = jnp.where(rank <= last[:, None], falling, BARRED)
    share = jax.nn.softmax(kept, axis=-1)
    # A token stays while those before it have not reached top_p; the best always does. At top_p = 1 all stay, whatever
    # the sum rounds to, or else a row's tokens would change with its batch mates' wishes.
    before = jnp.cumsum(share, axis=-1) - share
    top_p = wanted.top_p[:, None]
    stays = (rank <= last[:, None]) & ((before < top_p) | (top_p >= 1) | (rank == 0))
    edge = jnp.min(jnp.where(stays, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(x >= edge, x, BARRED)


def _logprobs(
    logits: Float[Array, "rows vocab"], token: Int[Array, "rows"]
) -> tuple[Float[Array, "rows"], Int[Array, "rows logprobs"], Float[Array, "rows logprobs"]]:
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    count = min(MAX_LOGPROBS, logits.shape[1])
    top, ids = lax.top_k(logprobs, count)
    room = ((0, 0), (0, MAX_LOGPROBS - count))
    chosen = jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
    return chosen, jnp.pad(ids, room).astype(jnp.int32), jnp.pad(top, room, constant_values=BARRED)


def _no_logprobs(
    logits: Float[Array, "rows vocab"], token: Int[Array, "rows"]
) -> tuple[Float[Array, "rows"], Int[Array, "rows logprobs"], Float[Array, "rows logprobs"]]:
    rows = logits.shape[0]
    wide = (rows, MAX_LOGPROBS)
    return jnp.zeros(rows, jnp.float32), jnp.zeros(wide, jnp.int32), jnp.zeros(wide, jnp.float32)
