"""Times between the points of a published grid: what is interpolated is the logarithm of time over a roofline.

Times span six decades, but the ratio of a time to its roofline (bytes at peak bandwidth, operations at peak rate, a
constant for the launch) varies slowly, so that straight lines in the logarithms of the sizes serve. Beyond the grid the
ratio of its edge is kept and the roofline goes on.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from solver.facts.profile import Mark
from solver.facts.workload import Floats

Marks = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class Times:
    """Seconds and where each comes from, of one shape."""

    seconds: Floats
    marks: Marks


@dataclasses.dataclass(frozen=True, eq=False)
class LogGrid:
    """Ratios on a grid.

    Attributes:
      axes: rising positive sizes.
      log_ratio: float64, one dimension per axis, no gaps.
      marks: uint8 of `Mark`, of the same shape.
    """

    axes: tuple[Floats, ...]
    log_ratio: Floats
    marks: Marks

    def at(self, *sizes: Floats | float) -> tuple[Floats, Marks]:
        """Ratio and mark at these sizes, broadcast together."""
        values = np.broadcast_arrays(*[np.asarray(size, np.float64) for size in sizes])
        places = [_place(axis, value) for axis, value in zip(self.axes, values, strict=True)]
        total = np.zeros(values[0].shape)
        marks = np.maximum.reduce([mark for _, _, mark in places])
        for corner in itertools.product((0, 1), repeat=len(places)):
            index = tuple(low + step for (low, _, _), step in zip(places, corner, strict=True))
            weights = [part if step else 1 - part for (_, part, _), step in zip(places, corner, strict=True)]
            weight = np.prod(weights, axis=0)
            total = total + weight * self.log_ratio[index]
            marks = np.maximum(marks, np.where(weight > 0, self.marks[index], 0))
        return np.exp(total), marks.astype(np.uint8)


def _place(axis: Floats, value: Floats) -> tuple[NDArray[np.intp], Floats, Marks]:
    low = np.clip(np.searchsorted(axis, value, side="right") - 1, 0, len(axis) - 2)
    x = np.log(axis)
    part = np.clip((np.log(np.maximum(value, axis[0])) - x[low]) / (x[low + 1] - x[low]), 0.0, 1.0)
    part = np.where(np.isclose(part, 0, atol=1e-12), 0.0, np.where(np.isclose(part, 1, atol=1e-12), 1.0, part))
    beyond = (value < axis[0]) | (value > axis[-1])
    inside = np.where((part == 0) | (part == 1), Mark.MEASURED, Mark.INTERPOLATED)
    return low, part, np.where(beyond, Mark.EXTRAPOLATED, inside).astype(np.uint8)


def grid_of(sizes: tuple[Floats, ...], log_ratio: Floats) -> LogGrid:
    """A grid from scattered rows; several of one point give their median.

    A gap takes the ratio of its lower neighbour along the last axis (published grids stop where memory does, at the
    end of that axis), else along the one before, and is marked as extrapolated.
    """
    axes = tuple(np.unique(size) for size in sizes)
    shape = tuple(len(axis) for axis in axes)
    index = np.ravel_multi_index(tuple(np.searchsorted(a, s) for a, s in zip(axes, sizes, strict=True)), shape)
    order = np.argsort(index, kind="stable")
    cells, starts = np.unique(index[order], return_index=True)
    values = np.full(int(np.prod(shape)), np.nan)
    groups = np.split(log_ratio[order], starts[1:])
    values[cells] = [float(np.median(group)) for group in groups]
    table = values.reshape(shape)
    marks = np.where(np.isnan(table), Mark.EXTRAPOLATED, Mark.MEASURED).astype(np.uint8)
    for axis in reversed(range(len(shape))):
        for reverse in (False, True):
            _fill(np.moveaxis(table, axis, 0), reverse)
    return LogGrid(axes, table, marks)


def _fill(table: Floats, reverse: bool) -> None:
    """Writes each gap's neighbour along the first axis into it."""
    rows = range(len(table) - 2, -1, -1) if reverse else range(1, len(table))
    for i in rows:
        before = table[i + 1 if reverse else i - 1]
        table[i] = np.where(np.isnan(table[i]), before, table[i])
