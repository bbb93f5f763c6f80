"""The decode side of WAA: how many rows it settles at under what encode sends, and what an iteration then takes.

Exact sizes: `settled` follows rows as they grow from an empty side, up to a cap. Compiled shapes: `held` takes a batch
that is always full, or residents that vary about as many as keep up; of an iteration the mean over the calls that it
may be, since the rung of rows and of positions is that of whoever is there. The plan's rungs follow from its rows, so
every number of rows has its own. B_E is fixed, as in all closed forms: what its correction costs at run time is left
out.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import iterations_s
from solver.simulate.lengths import Lengths, residents
from solver.simulate.padding import Padding, decode_calls, row_ladders, row_shares
from solver.simulate.points import Conditions
from solver.simulate.quantiles import occupancy, resident_quantile
from solver.simulate.rra import token_quantile

# Cycles whose iterations are told apart in the distribution of residents; longer ones are alike.
MOST_ITERATIONS = 4096
# Moments of a cycle at which residents are looked at, each the mean of the iterations around it.
_MOMENTS = 8
# A side is always full where encode could send so many times as many requests as end. With less to spare, rows that end
# in a bunch find nobody to follow them: simulations then lose up to 7%, with it about 2%.
FULL = 1.1
# `_shape` of residents that do not change.
_CONSTANT = np.stack([np.ones(_MOMENTS), np.zeros(_MOMENTS), np.eye(_MOMENTS)[0]])


@dataclasses.dataclass(frozen=True, eq=False)
class DecodeSide:
    """Of P candidates, [P] each.

    Attributes:
      rows: mean residents of one replica.
      iteration_s: from one iteration's start to the next one's.
      most_rps: what all replicas end per second, at most.
    """

    rows: Floats
    iteration_s: Floats
    most_rps: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class HeldSide(DecodeSide):
    """In compiled shapes.

    Attributes:
      max_rows, tokens: to allocate.
      full: encode keeps every allocated row busy; its batches wait in the buffers.
      refused: these rows never come together, or the rungs go beyond costs.
    """

    max_rows: Ints
    tokens: Floats
    full: NDArray[np.bool_]
    refused: NDArray[np.bool_]


def settled(
    pipeline: Pipeline, replicas: int, lengths: Lengths, encode_rps: Floats, caps: Ints, parts: Ints
) -> DecodeSide:
    """Where rows settle that may grow up to `caps`, in m_D = `parts`.

    Rows grow from an empty side until as many end as come, so of several balances the smallest number of rows counts
    (T_D(b) / b need not fall on a measured profile). Where none is reached the side runs at its best number of rows.
    """
    rows, seconds, capacity = (np.zeros(caps.size) for _ in range(3))
    mean = lengths.mean_decode
    context = residents(lengths, 1).context[:1]
    for part in np.unique(parts):
        where = np.flatnonzero(parts == part)
        most = min(int(caps[where].max()), pipeline.most_rows * int(part))
        grid = np.arange(1, most + 1, dtype=np.float64)
        table_s = iterations_s(pipeline, grid[None, :], context, np.array([float(part)])).apart_s[0]
        ending = replicas * grid / (max(mean, 1e-300) * table_s)
        best = np.maximum.accumulate(ending)
        at_best = np.maximum.accumulate(np.where(ending >= best, np.arange(most), 0))
        cap = np.minimum(caps[where], most) - 1
        capacity[where] = best[cap]
        # The first whole number of rows that keeps up, and the straight line from the one below.
        reached = np.minimum(np.searchsorted(best, encode_rps[where]), at_best[cap])
        below = np.maximum(reached - 1, 0)
        first_rows, first_s = np.where(reached > 0, grid[below], 0.0), np.where(reached > 0, table_s[below], 0.0)
        coming = np.minimum(encode_rps[where], capacity[where]) * mean / replicas
        rows[where], seconds[where] = _balance(coming, first_rows, first_s, grid[reached], table_s[reached])
    return DecodeSide(rows, seconds, capacity)


def _balance(coming: Floats, low: Floats, low_s: Floats, high: Floats, high_s: Floats) -> tuple[Floats, Floats]:
    """Rows, and seconds on the straight line between two numbers of them, where as many end as come.

    b = a (s0 + (b - b0) ds), with a = `coming` the rows that come per second of an iteration.
    """
    step_s = (high_s - low_s) / np.maximum(high - low, 1.0)
    slope = 1 - coming * step_s
    solved = (coming * (low_s - low * step_s)) / np.where(np.abs(slope) < 1e-12, 1.0, slope)
    rows = np.clip(np.where(np.abs(slope) < 1e-12, high, solved), low, high)
    return rows, low_s + (rows - low) * step_s


def held(
    pipeline: Pipeline,
    replicas: int,
    lengths: Lengths,
    conditions: Conditions,
    padding: Padding,
    encode_rps: Floats,
    batch: Ints,
    planned: Ints,
    parts: Ints,
) -> HeldSide:
    """Two kinds of candidates with `planned` rows (int64 [P]).

    Where encode sends more by far than so many rows end, they are all that is allocated, and always full. Where so many
    keep up with encode, but one row less does not, residents vary, and their quantile is allocated. Others are refused:
    of fewer rows, or more, there is a candidate with rungs that fit.
    """
    iterations, joining = _cycle(lengths, batch, planned)
    max_rows, tokens = allocated(lengths, conditions, joining, iterations)
    most = pipeline.most_rows * parts
    beyond = np.maximum(planned, batch) > most
    calls = _Calls(pipeline, padding, lengths, parts.astype(np.float64))
    rows = np.where(beyond, 1, planned).astype(np.float64)
    shapes = np.stack([_shape(lengths, int(count)) for count in iterations], axis=-1)
    constant = np.broadcast_to(_CONSTANT[:, :, None], shapes.shape)
    full_s = calls.iteration_s(rows, constant, np.where(beyond, 1, planned))
    rungs = np.where(beyond | (max_rows > most), 1, max_rows)
    high_s, low_s = (calls.iteration_s(each, shapes, rungs) for each in (rows, np.maximum(rows - 1, 1.0)))
    low_s = np.where(rows > 1, low_s, 0.0)
    coming = encode_rps * lengths.mean_decode / replicas
    below = np.divide(rows - 1, low_s, out=np.zeros_like(low_s), where=rows > 1)
    full = FULL * rows / full_s <= coming
    kept_up = ~full & (max_rows <= most) & (rows / high_s >= coming) & ((rows == 1) | (below < coming))
    balanced, balanced_s = _balance(coming, rows - 1, low_s, rows, high_s)
    return HeldSide(
        rows=np.where(full, rows, balanced),
        iteration_s=np.where(full, full_s, balanced_s),
        most_rps=replicas * rows / np.where(full, full_s, high_s) / max(lengths.mean_decode, 1e-300),
        max_rows=np.where(full, planned, max_rows),
        tokens=tokens,
        full=full,
        refused=beyond | (full & (batch > planned)) | ~(full | kept_up),
    )


def _cycle(lengths: Lengths, batch: Ints, rows: Ints) -> tuple[Ints, Floats]:
    """Iterations of one encode cycle with so many rows on average, and requests that join in them, [P] each."""
    mean = lengths.mean_decode
    iterations = np.clip(np.ceil(batch * mean / rows - 1e-9), 1, MOST_ITERATIONS).astype(np.int64)
    joining = np.maximum(rows * iterations / mean if mean > 0 else 0.0, batch.astype(np.float64))
    return iterations, joining


@functools.lru_cache(maxsize=MOST_ITERATIONS)
def _shape(lengths: Lengths, iterations: int) -> Floats:
    """float64 [3, moments]: residents through a cycle of N iterations, per row of their mean: mean, variance, weight.

    The weights' sum of the means is 1.
    """
    tail = lengths.alive[1:]
    ages = max(1, -(-len(tail) // iterations))
    alive = np.append(tail, np.zeros(ages * iterations - len(tail))).reshape(ages, iterations)
    means, variances = alive.sum(axis=0), (alive * (1 - alive)).sum(axis=0)
    if not means.sum():
        return _CONSTANT
    found = np.zeros((3, _MOMENTS))
    count = min(iterations, _MOMENTS)
    starts = np.arange(count) * iterations // count
    sizes = np.diff(np.append(starts, iterations))
    scale = sizes * means.mean()
    found[0, :count] = np.add.reduceat(means, starts) / scale
    found[1, :count] = np.add.reduceat(variances, starts) / scale
    found[2, :count] = sizes / iterations
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Calls:
    """Decode calls of P candidates; `parts`: float64 [P]."""

    pipeline: Pipeline
    padding: Padding
    lengths: Lengths
    parts: Floats

    def iteration_s(self, rows: Floats, shapes: Floats, max_rows: Ints) -> Floats:
        """float64 [P]: mean over the calls.

        Args:
          rows: of residents on average.
          shapes: float64 [3, moments, P]: `_shape` of each.
          max_rows: int64 [P]: the largest rung.
        """
        mean, variance, weight = shapes
        ladders = row_ladders(self.padding, max_rows)
        share = row_shares(ladders, rows * mean, np.sqrt(rows * variance), weight)
        chance, rungs, attended = decode_calls(self.padding, self.lengths, 1, rows, ladders, share)
        return (chance * call_s(self.pipeline, rungs, attended, self.parts)).sum(axis=0)


def call_s(pipeline: Pipeline, rows: Floats, attended: Floats, parts: Floats) -> Floats:
    """float64 [U, P]: T_D where each iteration is a call, of rows [U, P] or [1, P] and positions [U].

    What a call costs beside its work comes before a micro-batch's next iteration, as its token's way back does; others
    go on meanwhile.
    """
    if len(pipeline.stages) == 1:
        return iterations_s(pipeline, rows, attended, parts).apart_s + pipeline.phase_s
    later = dataclasses.replace(pipeline, return_s=pipeline.return_s + pipeline.phase_s)
    return iterations_s(later, rows, attended, parts).apart_s


def allocated(lengths: Lengths, conditions: Conditions, joining: Floats, iterations: Ints) -> tuple[Ints, Floats]:
    """Rows and cached tokens to allocate: residents of 2.2 with N iterations and `joining` requests a cycle.

    Where an iteration takes longer than a batch, N is 1 and several batches join at once.
    """
    max_rows, tokens = np.zeros(joining.size, np.int64), np.zeros(joining.size)
    for count in np.unique(iterations):
        where = iterations == count
        present = occupancy(lengths, int(count), conditions.delivery == "phase+1")
        max_rows[where] = resident_quantile(joining[where], present, conditions.overflow)
        found = residents(lengths, int(count))
        tokens[where] = token_quantile(found.tokens, found.tokens_variance, joining[where], conditions.overflow)
    return max_rows, tokens
