"""Where a looked-up time comes from: the mark of the grid points that a `Table` mixes for a size.

Predictions carry the worst mark behind them, so that a plan says when it rests on an estimate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solver.facts.profile import Mark, Table
from solver.facts.workload import Floats


def mark_at(table: Table, first: Floats | float, second: Floats | float) -> NDArray[np.uint8]:
    """The worst `Mark` of the points that `table.at` mixes for these sizes (broadcast together).

    Between measured points the answer is INTERPOLATED at best, beyond the grid EXTRAPOLATED at best. An axis with one
    point says nothing about other sizes along it: off that point counts as beyond the grid, unless it is the 0 that
    stands for an axis not used.
    """
    x, y = np.broadcast_arrays(np.asarray(first, np.float64), np.asarray(second, np.float64))
    i, i2, mark_x = _corners(table.first, x)
    j, j2, mark_y = _corners(table.second, y)
    corners = [table.marks[a, b] for a in (i, i2) for b in (j, j2)]
    return np.maximum.reduce([*corners, mark_x, mark_y]).astype(np.uint8)


def _corners(grid: Floats, value: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """The points used around each value (twice the same where it is a point), and the best mark along this axis."""
    if len(grid) == 1:
        here = np.zeros(value.shape, np.intp)
        known = np.full(value.shape, grid[0] == 0) | (value == grid[0])
        return here, here, np.where(known, Mark.MEASURED, Mark.EXTRAPOLATED).astype(np.uint8)
    low = np.clip(np.searchsorted(grid, value, side="right") - 1, 0, len(grid) - 2)
    high = low + 1
    low, high = np.where(value == grid[high], high, low), np.where(value == grid[low], low, high)
    beyond = (value < grid[0]) | (value > grid[-1])
    mark = np.where(beyond, Mark.EXTRAPOLATED, np.where(low == high, Mark.MEASURED, Mark.INTERPOLATED))
    return low, high, mark.astype(np.uint8)
