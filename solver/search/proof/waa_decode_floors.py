"""What the decode side of WAA can do at best in a box of candidates, and takes at least: exact sizes, compiled shapes.

Exact sizes: decode settles at the first number of rows that keeps up with encode, or at the best that its cap allows;
both only move up with their causes, so a box settles within a range of rows. Compiled shapes: a candidate's rows are
its own, or up to one less; whatever rungs follow, an iteration takes a floor that rises with the rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints
from solver.search.proof.bounds import ROUNDING
from solver.search.proof.boxes import Boxes
from solver.search.proof.padded_floors import KEEP, rung_lines
from solver.search.proof.range_minimum import RangeMinimum
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import iterations_s
from solver.simulate.lengths import Lengths, residents
from solver.simulate.padding import Padding
from solver.simulate.waa_decode import call_s


@dataclasses.dataclass(frozen=True, eq=False)
class Reach:
    """Of every box, [boxes] each.

    Attributes:
      most_rps: what decode ends per second, at most.
      iteration_s: at least.
      rows: that memory must hold, at least.
      refused: no candidate of the box can be evaluated.
    """

    most_rps: Floats
    iteration_s: Floats
    rows: Floats
    refused: NDArray[np.bool_]


class SettledFloors:
    """Of exact sizes.

    With `distinct`, candidates whose cap is higher than their rows ever settle count as refused: with the smallest such
    cap they are the same candidate, and the others are a plateau that a search would have to walk.
    """

    def __init__(
        self, pipeline: Pipeline, replicas: int, lengths: Lengths, micro_batches: int, distinct: bool = False
    ) -> None:
        self._distinct = distinct
        rows = np.arange(1, pipeline.most_rows * micro_batches + 1, dtype=np.float64)
        table_s = exact_s(pipeline, lengths, rows, micro_batches)
        ending = replicas * rows / (max(lengths.mean_decode, 1e-300) * table_s)
        self._best_rps = np.maximum.accumulate(ending)
        self._at_best = np.maximum.accumulate(np.where(ending >= self._best_rps, np.arange(len(rows)), 0))
        # Entry r is the time at r rows; below one row it falls to nothing.
        self._decode = RangeMinimum(np.concatenate([[0.0], table_s]))

    def over(self, boxes: Boxes, least_rps: Floats, most_rps: Floats) -> Reach:
        """Where encode sends between `least_rps` and `most_rps`."""
        cap_low, cap_high = (np.minimum(cap, len(self._best_rps)) - 1 for cap in (boxes.second_low, boxes.second_high))
        low_rows = self._settled(least_rps * (1 - ROUNDING), cap_low) - 1  # it may lie between two whole numbers
        high_rows = self._settled(most_rps * (1 + ROUNDING), cap_high)
        refused = np.zeros(len(boxes), bool)
        if self._distinct:
            everything = np.full(len(boxes), len(self._best_rps) - 1)
            refused = boxes.second_low > self._settled(most_rps * (1 + ROUNDING), everything)
        # At least B_E rows join, and the peak of residents is at least their mean.
        held = np.maximum(boxes.first_low, low_rows * (1 - ROUNDING) - 1)
        return Reach(self._best_rps[cap_high], self._decode.least(low_rows, high_rows), held, refused)

    def _settled(self, rate_rps: Floats, cap: Ints) -> Ints:
        """Whole rows, at least 1, at which decode keeps up with such a rate, or does its best."""
        return np.minimum(np.searchsorted(self._best_rps, rate_rps), self._at_best[cap]) + 1


class HeldFloors:
    """Of compiled shapes (`solver.simulate.waa_decode.held`)."""

    def __init__(self, pipeline: Pipeline, replicas: int, lengths: Lengths, micro_batches: int) -> None:
        self._replicas, self._mean = replicas, max(lengths.mean_decode, 1e-300)
        self._rows = np.arange(1, pipeline.most_rows * micro_batches + 1, dtype=np.float64)
        self._lines = _lines(pipeline, self._rows, micro_batches)

    def over(self, boxes: Boxes, least_rps: Floats, most_rps: Floats) -> Reach:
        """Whatever encode sends: it changes a candidate's rows by less than one."""
        rows, low, high = self._rows, boxes.second_low[:, None], boxes.second_high[:, None]
        batch = boxes.first_high.astype(np.float64)
        ending = self._replicas * rows / (self._mean * self._least_s(rows[None], batch[:, None]))
        fewer = boxes.second_low.astype(np.float64) - 1
        # At least B_E rows join, and as many are allocated as are held.
        held = np.maximum(boxes.first_low, boxes.second_low)
        return Reach(
            most_rps=np.where((rows >= low) & (rows <= high), ending, 0.0).max(axis=1),
            iteration_s=np.where(fewer > 0, self._least_s(fewer, batch), 0.0),
            rows=held.astype(np.float64),
            refused=held > len(rows),
        )

    def table_s(self, most_encode: int) -> Floats:
        """float64 [rows]: at 1 .. rows, whatever B_E up to `most_encode`."""
        return self._least_s(self._rows, np.array(float(most_encode)))

    def _least_s(self, rows: Floats, batch: Floats) -> Floats:
        """Of so many rows on average, B_E at most `batch`; broadcast together.

        As in `padded_floors`, but residents vary by at most n + B_E / 2: sum_a P(D > aN)(1 - P(D > aN)) takes at most
        E[D] / N of ages above 0 and 1/4 of age 0, and of the latter there are at most 2 B_E a cycle where N > 1.
        """
        reached = np.maximum(0.0, rows - 0.5 - 0.4 * np.sqrt(rows + batch / 2))
        least = np.full(reached.shape, -np.inf)
        for height, slope in self._lines:
            least = np.maximum(least, height + slope * reached)
        return KEEP * least


def _lines(pipeline: Pipeline, rows: Floats, micro_batches: int) -> Floats:
    """Below the least time of any rung from each on, at whatever positions are attended to."""
    knots = pipeline.contexts
    one = call_s(pipeline, rows[None, :], knots, np.full(rows.shape, float(micro_batches)))
    return rung_lines(one.min(axis=0))


def exact_s(pipeline: Pipeline, lengths: Lengths, rows: Floats, micro_batches: int) -> Floats:
    """float64 [rows]: T_D at the mean context of residents."""
    context = residents(lengths, 1).context[:1]
    return iterations_s(pipeline, rows[None, :], context, np.array([float(micro_batches)])).apart_s[0]


def decode_floors(
    pipeline: Pipeline,
    replicas: int,
    lengths: Lengths,
    padding: Padding | None,
    micro_batches: int,
    distinct: bool = False,
) -> SettledFloors | HeldFloors:
    """Those of the profile's kind."""
    if padding is not None:
        return HeldFloors(pipeline, replicas, lengths, micro_batches)
    return SettledFloors(pipeline, replicas, lengths, micro_batches, distinct)
