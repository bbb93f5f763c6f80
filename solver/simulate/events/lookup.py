"""Decode times of whole rows, looked up quickly: the tables of `Pipeline.decode_rows_s`, linear between contexts."""

from __future__ import annotations

import bisect

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline


class DecodeLookup:
    """One pipeline's decode tables, laid out by context, then rows, then stage."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._table = np.ascontiguousarray(pipeline.decode_rows_s.transpose(1, 2, 0))
        self._knots = pipeline.contexts
        self._knot_list = self._knots.tolist()
        self._most = pipeline.most_rows

    def one(self, rows: int, context: float) -> Floats:
        """float64 [stages]."""
        self._check(rows)
        knots = self._knot_list
        low = min(max(bisect.bisect_right(knots, context) - 1, 0), max(0, len(knots) - 2))
        high = min(low + 1, len(knots) - 1)
        share = min(max((context - knots[low]) / (knots[high] - knots[low]), 0.0), 1.0) if high > low else 0.0
        below: Floats = self._table[low, rows]
        return below + share * (self._table[high, rows] - below)

    def many(self, rows: Ints, context: Floats) -> Floats:
        """float64 [..., stages]; rows and contexts of one shape."""
        self._check(int(rows.max(initial=0)))
        knots = self._knots
        low = np.minimum(np.maximum(np.searchsorted(knots, context, side="right") - 1, 0), max(0, len(knots) - 2))
        high = np.minimum(low + 1, len(knots) - 1)
        span = np.where(high > low, knots[high] - knots[low], 1.0)
        share = np.minimum(np.maximum((context - knots[low]) / span, 0.0), 1.0)[..., None]
        below: Floats = self._table[low, rows]
        return below + share * (self._table[high, rows] - below)

    def _check(self, rows: int) -> None:
        if rows > self._most:
            raise ValueError(f"rows: {rows} is beyond the {self._most} that costs were tabulated for; tabulate more")
