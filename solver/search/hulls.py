"""Straight lines below a curve: the lower convex hull, found by splitting at the lowest point.

A line alpha + beta n below T(n) for every n bounds a sum of T over a phase by the number of iterations and the sum of
their rows alone, and the latter is fixed by conservation, whatever the shape of the phase (scheduling.md, 2.6 b).
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats

# A piece of the hull is refined until its line lies this close below the curve, relative to the curve's height.
CLOSENESS = 1e-3


def lines_below(heights: Floats) -> Floats:
    """float64 [lines, 2]: (alpha, beta) with alpha + beta n <= height of the curve at every n in 0 .. len - 1.

    `heights` are taken at whole n and joined by straight lines, so the lines hold for fractional n too. A piece that is
    not refined to its last corner is lowered by what it misses: its ends are corners of the hull, so beyond them the
    hull lies above the piece's line.
    """
    last = len(heights) - 1
    if last == 0:
        return np.array([[heights[0], 0.0]])
    enough = CLOSENESS * float(np.abs(heights).max())
    lines: list[tuple[float, float]] = []
    pieces = [(0, last)]
    while pieces:
        first, end = pieces.pop()
        slope = (heights[end] - heights[first]) / (end - first)
        above = heights[first : end + 1] - (heights[first] + slope * np.arange(end - first + 1))
        lowest = int(above.argmin())
        if -above[lowest] > enough and 0 < lowest < end - first:
            pieces += [(first, first + lowest), (first + lowest, end)]
        else:
            lines.append((heights[first] + min(0.0, above[lowest]) - slope * first, slope))
    return np.array(lines)
