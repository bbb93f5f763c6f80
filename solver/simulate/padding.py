"""What an engine of compiled shapes really computes: prompts and rows rounded up to rungs, by the runner's own rules.

Encode calls are packed as the runner packs them. A decode call takes the rung of rows that holds everybody and the rung
of positions that covers the longest row's reach; both are random, so the evaluator gets their distributions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.buckets import Buckets, attended_tokens
from solver.plan.packing import pack
from solver.plan.plan import encode_call_rows, make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.lengths import Lengths

# The most rungs that a ladder of decode rows has.
_ROW_RUNGS = 5
# Calls that are less probable are left out.
_UNLIKELY = 1e-12
# Batches up to this are counted one by one, larger ones about five to each doubling.
_EVERY_BATCH = 24
# Counts of prompts per rung that are gone through one by one; more are drawn, about so many prompts of each batch size.
_FEW, _SAMPLES, _SEED = 1024, 4096, 20240407

Call = tuple[float, int, int]
"""How many calls a batch has on average with so many rows and tokens."""


@dataclasses.dataclass(frozen=True)
class Padding:
    """The shapes that a plan's programs will be compiled for.

    Attributes:
      cache_tokens: allocated positions per row.
      max_prompt_tokens: longest prompt that is taken.
    """

    cache_tokens: int
    max_prompt_tokens: int

    def buckets(self, encode_batch: int, max_rows: int) -> Buckets:
        """Those of the plan with this encode batch and so many rows."""
        return _buckets(self, encode_call_rows(encode_batch, self.max_prompt_tokens), max_rows)

    @property
    def cache_rungs(self) -> tuple[int, ...]:
        return self.buckets(1, 1).cache_tokens


@functools.lru_cache(maxsize=4096)
def _buckets(padding: Padding, call_rows: int, max_rows: int) -> Buckets:
    schedule = Schedule(
        policy="rra",
        encode_batch=1,
        decode_iterations=1,
        decode_batch=1,
        max_rows=max_rows,
        stages=(StageSpec("both", (0, 1), (0,), 1),),
        micro_batch=1,
        encode_micro_batch=call_rows,
    )
    return make_buckets(schedule, padding.cache_tokens, padding.max_prompt_tokens)


def encode_calls(padding: Padding, lengths: Lengths, batch: int) -> tuple[Call, ...]:
    """Expected encode calls of `batch` prompts.

    Packing sees only how many prompts fall to each rung of tokens, so the mean is over those counts: over all of them
    with their multinomial probabilities where they are few, else over seeded draws.
    """
    return _calls(padding, *_prompts(padding, lengths), batch)


def batch_sizes(most_rows: int) -> list[int]:
    """Batches of prompts whose calls are counted; between two of them lies a straight line."""
    sizes = list(range(1, min(most_rows, _EVERY_BATCH) + 1))
    while sizes[-1] < most_rows:
        sizes.append(min(most_rows, round(sizes[-1] * 2**0.2)))
    return sizes


@functools.lru_cache(maxsize=64)
def moved_tokens(padding: Padding | None, lengths: Lengths, most_rows: int) -> Floats:
    """float64 [r], r = 0 .. most_rows: tokens of r prompts in the shapes of their calls; None: in their own."""
    batch = np.arange(most_rows + 1, dtype=np.float64)
    if padding is None:
        return lengths.mean_input * batch
    sizes = batch_sizes(most_rows)
    each = [sum(count * rows * tokens for count, rows, tokens in encode_calls(padding, lengths, n)) for n in sizes]
    return np.interp(batch, [0, *sizes], [0.0, *each])


@functools.lru_cache(maxsize=256)
def _prompts(padding: Padding, lengths: Lengths) -> tuple[tuple[float, ...], float]:
    """Share of prompts that fall to each rung of tokens, and calls for those longer than any: these go in chunks of the
    largest, each alone. Rounded, so that workloads whose prompts are alike share what is worked out for them.
    """
    rungs = padding.buckets(1, 1).encode_tokens
    workload = lengths.workload
    rung_of = np.searchsorted(np.array(rungs), workload.input_tokens)
    shares = np.bincount(rung_of, weights=workload.probability, minlength=len(rungs) + 1)
    chunks = workload.probability @ (np.ceil(workload.input_tokens / rungs[-1]) * (rung_of == len(rungs)))
    return tuple(np.round(shares / shares.sum(), 12).tolist()), round(float(chunks), 12)


@functools.lru_cache(maxsize=4096)
def _calls(padding: Padding, rounded: tuple[float, ...], chunks: float, batch: int) -> tuple[Call, ...]:
    buckets = padding.buckets(batch, batch)
    rungs = buckets.encode_tokens
    shares = np.array(rounded) / sum(rounded)
    calls: dict[tuple[int, int], float] = {(1, rungs[-1]): batch * chunks} if chunks else {}
    for counts, chance in _counts(batch, shares):
        for shape in _packed(buckets, counts[: len(rungs)]):
            calls[shape] = calls.get(shape, 0.0) + chance
    return tuple((count, rows, tokens) for (rows, tokens), count in sorted(calls.items()))


@functools.lru_cache(maxsize=65536)
def _packed(buckets: Buckets, counts: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Rows and tokens of the calls for so many prompts at each rung of tokens."""
    prompts = [rung for rung, count in zip(buckets.encode_tokens, counts, strict=True) for _ in range(count)]
    return tuple((call.rows_bucket, call.tokens_bucket) for call in pack(prompts, buckets))


def _counts(batch: int, shares: Floats) -> list[tuple[tuple[int, ...], float]]:
    """Numbers of prompts per rung, with their probabilities."""
    used = np.flatnonzero(shares > 0)
    if math.comb(batch + len(used) - 1, len(used) - 1) > _FEW:
        draws = max(_FEW // 16, _SAMPLES // batch)
        drawn = np.random.default_rng(_SEED).multinomial(batch, shares, draws)
        found, times = np.unique(drawn, axis=0, return_counts=True)
        return [(tuple(row), float(count) / draws) for row, count in zip(found.tolist(), times, strict=True)]
    every = []
    for bars in itertools.combinations(range(batch + len(used) - 1), len(used) - 1):
        parts = np.diff([-1, *bars, batch + len(used) - 1]) - 1
        counts = np.zeros(len(shares), np.int64)
        counts[used] = parts
        log = math.lgamma(batch + 1) + sum(
            n * math.log(shares[at]) - math.lgamma(n + 1) for at, n in zip(used, parts.tolist(), strict=True)
        )
        every.append((tuple(counts.tolist()), math.exp(log)))
    return every


@functools.lru_cache(maxsize=4096)
def reach_shares(padding: Padding, lengths: Lengths, iterations: int) -> Floats:
    """float64 [rungs]: share of residents whose row reaches at most each rung of positions by the end of its phase.

    A resident of age a reaches I + (a + 1) N positions; the runner, which knows no length, counts to the longest
    answer there is.
    """
    workload, most = lengths.workload, lengths.most_decode
    decode = workload.output_tokens - (1 if lengths.first_token == "encode" else 0)
    periods = -(-decode // iterations)
    total = float(workload.probability @ periods)
    shares = []
    for rung in padding.cache_rungs:
        within = np.clip((rung - workload.input_tokens) // iterations, 0, periods)
        within = np.where(rung >= workload.input_tokens + most, periods, within)
        shares.append(float(workload.probability @ within) / total if total else 1.0)
    shares[-1] = 1.0
    return np.array(shares)


def reach_of_batch(padding: Padding, lengths: Lengths, generated: Ints, batch: Floats) -> Floats:
    """float64 [rungs, u, P]: share of batches whose longest prompt plus `generated` [u] tokens needs each rung."""
    order = np.argsort(lengths.workload.input_tokens, kind="stable")
    prompts = lengths.workload.input_tokens[order]
    below = np.concatenate([[0.0], np.cumsum(lengths.workload.probability[order])])
    rungs = np.array(padding.cache_rungs)
    within = below[np.searchsorted(prompts, rungs[:, None] - generated[None, :], side="right")]
    within[-1] = 1.0
    return np.diff(np.minimum(within, 1.0)[:, :, None] ** batch, axis=0, prepend=0.0)


def decode_mixture(
    padding: Padding, lengths: Lengths, iterations: int, rows: Floats, deviation: Floats, max_rows: Ints
) -> tuple[Floats, Floats, Floats]:
    """The calls that a phase may run as: probability [calls, P], rows [calls, P], attended positions [calls].

    Args:
      rows, deviation: float64 [P]: mean and standard deviation of residents.
      max_rows: int64 [P]: rows allocated, the largest rung.
    """
    ladders = row_ladders(padding, max_rows)
    share = row_shares(ladders, rows[None], deviation[None], np.ones((1, rows.size)))
    return decode_calls(padding, lengths, iterations, rows, ladders, share)


def row_ladders(padding: Padding, max_rows: Ints) -> Floats:
    """float64 [rungs, P]: rungs of decode rows of each; the last is `max_rows`."""
    return np.array([_row_ladder(padding, int(most)) for most in max_rows], np.float64).T


def row_shares(ladders: Floats, rows: Floats, deviation: Floats, weight: Floats) -> Floats:
    """float64 [rungs, P]: how often each is the one that holds all residents.

    These are normal with any of several means and deviations, float64 [moments, P], each as often as `weight` says.
    """
    z = (ladders[:, None] + 0.5 - rows) / np.maximum(deviation, 1e-9)
    below = (_normal(z) * weight).sum(axis=1)
    below[-1] = 1.0
    return np.diff(below, axis=0, prepend=0.0)


def decode_calls(
    padding: Padding, lengths: Lengths, iterations: int, rows: Floats, ladders: Floats, row_share: Floats
) -> tuple[Floats, Floats, Floats]:
    """As `decode_mixture`, from the shares of the rungs of rows [rungs, P]; `rows` [P] on average decide the reach."""
    rungs = padding.cache_rungs
    reach = reach_shares(padding, lengths, iterations)[:, None] ** np.maximum(rows, 1.0)
    reach_share = np.diff(reach, axis=0, prepend=0.0)
    all_rows = ladders == ladders[-1]
    # All rows and few of them attend to different rungs, so each pair of rungs stands twice.
    shares, attended = [], []
    for whole in (True, False):
        chosen = np.where(all_rows == whole, row_share, 0.0)
        shares.append(chosen[:, None, :] * reach_share[None, :, :])
        attended.append([attended_tokens(rung, iterations, whole, rungs) for rung in rungs])
    count = len(ladders)
    share = np.concatenate(shares).reshape(-1, rows.size)
    likely = (share > _UNLIKELY).any(axis=1)
    return (
        share[likely],
        np.tile(np.repeat(ladders, len(rungs), axis=0), (2, 1))[likely],
        np.concatenate([np.tile(np.array(each, np.float64), count) for each in attended])[likely],
    )


@functools.lru_cache(maxsize=65536)
def _row_ladder(padding: Padding, max_rows: int) -> tuple[int, ...]:
    """Rungs of decode rows; short ladders repeat their last rung, so that all have the same length."""
    rungs = padding.buckets(1, max_rows).decode_rows
    return rungs + (max_rows,) * (_ROW_RUNGS - len(rungs))


def _normal(z: Floats) -> Floats:
    """Distribution function of the standard normal (Abramowitz and Stegun 7.1.26, error below 1.5e-7)."""
    x = np.abs(z) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * tail * np.exp(-x * x)
    return np.where(z > 0, 1 - half, half)
