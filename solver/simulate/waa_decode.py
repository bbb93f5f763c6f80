"""The decode side of WAA: how many rows it settles at under what encode sends, and what an iteration then takes.

Exact sizes: `settled` follows rows as they grow from an empty side, up to a cap. Compiled shapes: `held` takes the rows
that the runner's correction of B_E holds, or a batch that is always full where encode is too fast for that; of an
iteration the mean over the calls that it may be, since the rung of rows and of positions is that of whoever is there.
The plan's rungs follow from its rows, so every number of rows has its own.
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
      refused: fewer rows would keep up with encode, so that these never come together; or the rungs go beyond costs.
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
    least_rps: Floats,
    batch: Ints,
    planned: Ints,
    parts: Ints,
) -> HeldSide:
    """Rows held at `planned` (int64 [P]); where encode sends fewer, between that and one row less.

    Encode sends `encode_rps` with whole batches, `least_rps` with the least that the correction takes. Where decode is
    slower than these, too, rows fill what is allocated, and the plan allocates no more than it holds.
    """
    iterations, joining = _cycle(lengths, batch, planned)
    max_rows, tokens = allocated(lengths, conditions, joining, iterations)
    most = pipeline.most_rows * parts
    beyond = (max_rows > most) | (planned > most)
    calls = _Calls(pipeline, padding, lengths, parts.astype(np.float64))
    rungs, full_rungs = np.where(beyond, 1, max_rows), np.where(beyond, 1, planned)
    rows = np.where(beyond, 1, planned).astype(np.float64)
    shapes = np.stack([_shape(lengths, int(count)) for count in iterations], axis=-1)
    high_s, low_s = (calls.iteration_s(each, shapes, rungs) for each in (rows, np.maximum(rows - 1, 1.0)))
    low_s = np.where(rows > 1, low_s, 0.0)
    full_s = calls.iteration_s(rows, np.broadcast_to(_CONSTANT[:, :, None], shapes.shape), full_rungs)
    coming, least = (rps * lengths.mean_decode / replicas for rps in (encode_rps, least_rps))
    slower = rows / high_s < coming
    full = slower & (rows / high_s <= least)
    # Of a batch larger than the rows, or of one that a full side outruns, nothing keeps the rows where they are.
    refused = beyond | (full & ((batch > planned) | (rows / full_s >= coming)))
    refused |= ~slower & (rows > 1) & (np.divide(rows - 1, low_s, out=np.zeros_like(low_s), where=rows > 1) >= coming)
    balanced, balanced_s = _balance(coming, rows - 1, low_s, rows, high_s)
    taken_s = np.where(full, full_s, high_s)
    return HeldSide(
        rows=np.where(slower, rows, balanced),
        iteration_s=np.where(slower, taken_s, balanced_s),
        most_rps=replicas * rows / taken_s / max(lengths.mean_decode, 1e-300),
        max_rows=np.where(full, np.maximum(planned, batch), max_rows),
        tokens=tokens,
        full=full,
        refused=refused,
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
        """float64 [P]: mean over the calls; each iteration is a call and pays what a call costs.

        Args:
          rows: of residents on average.
          shapes: float64 [3, moments, P]: `_shape` of each.
          max_rows: int64 [P]: the largest rung.
        """
        mean, variance, weight = shapes
        ladders = row_ladders(self.padding, max_rows)
        share = row_shares(ladders, rows * mean, np.sqrt(rows * variance), weight)
        chance, rungs, attended = decode_calls(self.padding, self.lengths, 1, rows, ladders, share)
        apart_s = iterations_s(self.pipeline, rungs, attended, self.parts).apart_s
        return (chance * apart_s).sum(axis=0) + self.pipeline.phase_s


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
