"""What a decode phase looks like at every N_D, per admitted request: the part of the bounds that no profile changes.

Under N iterations a phase is cut into equal segments; in each, rows and contexts of the residents lie between two
figures, whatever B_E is. Looked up over a range of N, they say which entries of a profile a whole box of candidates can
touch (scheduling.md, 2.2 and 2.6 d, e, g). Made once per workload, shared by all placements, bounds and micro-batches.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.search.proof.range_minimum import RangeMinimum
from solver.simulate.lengths import Lengths
from solver.simulate.points import Conditions
from solver.simulate.quantiles import normal_quantile
from solver.simulate.rra import phase_tokens

SEGMENTS = 16
_GROUPS = 8  # columns that stand once per segment


@dataclasses.dataclass(frozen=True, eq=False)
class ShapeRanges:
    """Over ranges of N: the least (`_low`) and most (`_high`) of what a phase looks like, per admitted request.

    Attributes:
      rows_low, rows_high, context_low, context_high: float64 [boxes, segments]: of the iterations in a segment.
      segment_rows_low: [boxes, segments]: sum of rows over the segment's iterations.
      segment_tokens_low: [boxes, segments]: sum of rows x context over them.
      waited_share_low, waited_tokens_low: [boxes, segments]: iterations of the segment, and their rows x context,
        that a request of the bound's percentile of length waits for.
      encodes_low, drains_low: [boxes]: encode phases, and ends of decode phases, that it waits for.
      latency_iterations_low, .._high, latency_rows_low, .._high, latency_tokens_low: [boxes]: sums over them.
      phase_rows_low, .._high, phase_tokens_low: [boxes]: sums over one phase.
      peak_low: [boxes]: n_1 per B_E.
      held_low, held_variance_low: [boxes]: mean and variance, per B_E, of the rows that residents hold.
      held_skew_low, held_most_low: [boxes]: what skewness adds to their quantile; the most that they can hold, per B_E.
      tokens_low, tokens_variance_low: [boxes]: mean and variance, per B_E, of cached tokens where the mean is highest.
    """

    rows_low: Floats
    rows_high: Floats
    context_low: Floats
    context_high: Floats
    segment_rows_low: Floats
    segment_tokens_low: Floats
    waited_share_low: Floats
    waited_tokens_low: Floats
    encodes_low: Floats
    drains_low: Floats
    latency_iterations_low: Floats
    latency_iterations_high: Floats
    latency_rows_low: Floats
    latency_rows_high: Floats
    latency_tokens_low: Floats
    phase_rows_low: Floats
    phase_rows_high: Floats
    phase_tokens_low: Floats
    peak_low: Floats
    held_low: Floats
    held_variance_low: Floats
    held_skew_low: Floats
    held_most_low: Floats
    tokens_low: Floats
    tokens_variance_low: Floats


class PhaseShapes:
    """Shapes at N = 1 .. most_iterations.

    Attributes:
      least_context, most_context: over all N and iterations.
    """

    def __init__(self, lengths: Lengths, conditions: Conditions, most_iterations: int) -> None:
        tails = _tails(lengths, most_iterations)
        columns = [_one(tails, lengths, conditions, n) for n in range(1, most_iterations + 1)]
        table = np.array(columns)
        self._lookup = RangeMinimum(table)
        self.least_context = float(table[:, 2 * SEGMENTS : 3 * SEGMENTS].min())
        self.most_context = float(-table[:, 3 * SEGMENTS : 4 * SEGMENTS].min())

    def over(self, first: Ints, last: Ints) -> ShapeRanges:
        """Ranges over N = first .. last, both included."""
        found = self._lookup.least(first - 1, last - 1)
        parts = [found[:, i * SEGMENTS : (i + 1) * SEGMENTS] for i in range(_GROUPS)]
        single = found[:, _GROUPS * SEGMENTS :].T
        return ShapeRanges(
            rows_low=parts[0],
            rows_high=-parts[1],
            context_low=parts[2],
            context_high=-parts[3],
            segment_rows_low=parts[4],
            segment_tokens_low=parts[5],
            waited_share_low=parts[6],
            waited_tokens_low=parts[7],
            encodes_low=single[0],
            drains_low=single[1],
            latency_iterations_low=single[2],
            latency_iterations_high=-single[3],
            latency_rows_low=single[4],
            latency_rows_high=-single[5],
            latency_tokens_low=single[6],
            phase_rows_low=single[7],
            phase_rows_high=-single[8],
            phase_tokens_low=single[9],
            peak_low=single[10],
            held_low=single[11],
            held_variance_low=single[12],
            held_skew_low=single[13],
            held_most_low=single[14],
            tokens_low=single[15],
            tokens_variance_low=single[16],
        )


@functools.lru_cache(maxsize=16)
def phase_shapes(lengths: Lengths, conditions: Conditions, most_iterations: int) -> PhaseShapes:
    """Kept: every placement of a workload asks for the same."""
    return PhaseShapes(lengths, conditions, most_iterations)


def _tails(lengths: Lengths, most_iterations: int) -> Floats:
    """float64 [3, k], k = 1 .., zeros behind the end: P(D >= k), mean and variance of (I + k - 1) 1{D >= k}."""
    alive, inputs, inputs2 = lengths.alive[1:], lengths.input_alive[1:], lengths.input2_alive[1:]
    behind = np.arange(len(alive), dtype=np.float64)
    tails = np.zeros((3, len(alive) + most_iterations))
    tails[0, : len(alive)] = alive
    tails[1, : len(alive)] = inputs + behind * alive
    tails[2, : len(alive)] = inputs2 + 2 * behind * inputs + behind**2 * alive - tails[1, : len(alive)] ** 2
    return tails


def _one(tails: Floats, lengths: Lengths, conditions: Conditions, iterations: int) -> Floats:
    """The columns of one N, in the order in which `over` reads them; what is looked up as a maximum is negated."""
    ages = max(1, -(-lengths.most_decode // iterations))
    by_age = tails[:, : ages * iterations].reshape(3, ages, iterations)
    rows, tokens, tokens_variance = by_age.sum(axis=1)
    run, context = _run(rows, tokens, conditions)

    # Segment s spans the phase from s N / S to (s + 1) N / S, so at its ends it may hold parts of iterations.
    edges = np.arange(SEGMENTS + 1) * iterations / SEGMENTS
    first = np.arange(SEGMENTS) * iterations // SEGMENTS
    last = -(-np.arange(1, SEGMENTS + 1) * iterations // SEGMENTS) - 1
    pairs = np.stack([first, last + 1], axis=1).ravel()
    padded = np.append(context, context[-1])
    least = np.minimum.reduceat(padded, pairs)[::2]
    most = np.maximum.reduceat(padded, pairs)[::2]
    sums = np.concatenate([[0.0], np.cumsum(run)])
    token_sums = np.concatenate([[0.0], np.cumsum(run * context)])
    ticks = np.arange(iterations + 1)
    segment_rows = np.diff(np.interp(edges, ticks, sums))
    segment_tokens = np.diff(np.interp(edges, ticks, token_sums))

    whole, rest = _waited(lengths.decode_percentile(conditions.latency_percentile), iterations, conditions)
    share = whole * iterations / SEGMENTS + np.clip(rest - edges[:-1], 0, iterations / SEGMENTS)
    waited_tokens = whole * segment_tokens + np.diff(np.interp(np.minimum(edges, rest), ticks, token_sums))
    waited_rows = whole * sums[-1] + sums[rest]
    waited_iterations = whole * iterations + rest
    phases = whole + (rest > 0)
    single = [
        max(1, phases),
        phases,
        waited_iterations,
        -waited_iterations,
        waited_rows,
        -waited_rows,
        whole * token_sums[-1] + token_sums[rest],
        sums[-1],
        -sums[-1],
        token_sums[-1],
        rows[0],
        *_held(by_age[0, :, 0], conditions),
        *_tokens(tokens, tokens_variance, lengths, iterations, conditions),
    ]
    by_segment = [run[last], -run[first], least, -most, segment_rows, segment_tokens, share, waited_tokens]
    return np.concatenate([*by_segment, single])


def _run(rows: Floats, tokens: Floats, conditions: Conditions) -> tuple[Floats, Floats]:
    """Rows that are decoded at each iteration, and their mean context."""
    if conditions.compaction == "phase":
        # Rows that end go on to the end of the phase, and so does their context.
        begin = tokens[0] / rows[0] if rows[0] > 0 else 0.0
        return np.full_like(rows, rows[0]), np.arange(len(rows), dtype=np.float64) + begin
    filled = np.maximum.accumulate(np.where(rows > 0, np.arange(len(rows)), 0))
    context: Floats = np.divide(tokens, rows, out=np.zeros_like(tokens), where=rows > 0)
    return rows, context[filled]


def _waited(longest: int, iterations: int, conditions: Conditions) -> tuple[int, int]:
    """Whole phases that a request of so many decode iterations waits for, and iterations of one more."""
    phases = -(-longest // iterations)
    if not phases or conditions.delivery != "iteration":
        return phases + (phases > 0 and conditions.delivery == "phase+1"), 0
    return phases - 1, longest - (phases - 1) * iterations


def _held(born: Floats, conditions: Conditions) -> tuple[float, ...]:
    """Of the rows that residents hold: mean, variance, the quantile's correction for skewness, most."""
    held = np.concatenate([born[:1], born]) if conditions.delivery == "phase+1" else born
    spread = held * (1 - held)
    variance, third = float(spread.sum()), float((spread * (1 - 2 * held)).sum())
    z = normal_quantile(1 - conditions.overflow)
    skew = (z * z - 1) / 6 * third / variance if variance > 0 else 0.0
    return float(held.sum()), variance, skew, float((held > 0).sum())


def _tokens(
    tokens: Floats, variance: Floats, lengths: Lengths, iterations: int, conditions: Conditions
) -> tuple[float, float]:
    """Mean and variance of cached tokens at the iteration of the highest mean; by phase, every row counts the whole."""
    if conditions.compaction == "iteration":
        at = int(tokens.argmax())
        return float(tokens[at]), float(variance[at])
    mean, spread = phase_tokens(lengths, iterations)
    return float(mean[0]), float(spread[0])
