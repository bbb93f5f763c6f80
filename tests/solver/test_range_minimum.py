"""Minima of stretches, and lines below curves, against looking at every entry."""

from __future__ import annotations

import numpy as np

from solver.search.proof.hulls import CLOSENESS, lines_below
from solver.search.proof.range_minimum import RangeMinimum


def test_minima_of_every_stretch() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 16, 33):
        values = rng.normal(size=(size, 2))
        first, last = np.triu_indices(size)
        found = RangeMinimum(values).least(first, last)
        expected = [values[i : j + 1].min(axis=0) for i, j in zip(first, last, strict=True)]
        np.testing.assert_array_equal(found, expected)


def test_looked_up_minima_leave_the_table_alone() -> None:
    table = RangeMinimum(np.array([3.0, 1.0, 2.0]))
    table.least(np.array([0]), np.array([0]))[:] = -9.0
    np.testing.assert_array_equal(table.least(np.array([0, 0]), np.array([0, 2])), [3.0, 1.0])


def test_lines_lie_below_and_close() -> None:
    rng = np.random.default_rng(1)
    rows = np.arange(200.0)
    for curve in (
        1 + 0.01 * rows,
        1 + np.ceil(rows / 16),
        1 + 1e-4 * (rows - 90) ** 2,
        rng.uniform(1, 2, 200),
        np.full(200, 3.0),
        np.array([2.0]),
    ):
        at = np.arange(len(curve))
        lines = lines_below(curve)
        below = (lines[:, :1] + lines[:, 1:] * at).max(axis=0)
        assert (below <= curve + 1e-12).all()
        assert (curve - below).min() <= CLOSENESS * np.abs(curve).max() + 1e-12
    # A convex curve is met everywhere, to within the closeness asked for.
    convex = 1 + 1e-4 * (rows - 90) ** 2
    lines = lines_below(convex)
    assert (convex - (lines[:, :1] + lines[:, 1:] * rows).max(axis=0)).max() <= 1.001 * CLOSENESS * convex.max()
