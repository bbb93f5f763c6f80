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


def context_slope(contexts: Floats, decode: Floats, rows: int) -> float:
    """How much T_D grows per row and token of context, at so many rows; 0 where it does not."""
    if len(contexts) == 1:
        return 0.0
    at = max(1, rows)
    return max(0.0, float((decode[-1, at] - decode[0, at]) / ((contexts[-1] - contexts[0]) * at)))


def lines_in_context(contexts: Floats, decode: Floats) -> Floats:
    """float64 [lines, 3]: (alpha, beta, gamma) with alpha + beta n + gamma n c <= T_D(n, c) everywhere.

    For each of a few slopes gamma, what remains of T_D is bilinear in n and c between its entries, so its least over
    the knots is a curve in n, and the lines below that curve hold for all contexts.
    """
    rows = np.arange(decode.shape[1])
    slopes = {context_slope(contexts, decode, at) for at in (len(rows) // 8, len(rows) // 2, len(rows) - 1)} | {0.0}
    found = []
    for slope in sorted(slopes):
        lines = lines_below((decode - slope * rows * contexts[:, None]).min(axis=0))
        found.append(np.column_stack([lines, np.full(len(lines), slope)]))
    return np.concatenate(found)


def best_line(lines: Floats, iterations: tuple[Floats, Floats], rows: tuple[Floats, Floats], tokens: Floats) -> Floats:
    """float64 [boxes]: the best line's alpha x iterations + beta x rows + gamma x tokens.

    A factor below 0 is met by the most, not the least, of what it multiplies.
    """
    alpha, beta, gamma = lines.T[:, :, None]
    total = np.where(alpha >= 0, alpha * iterations[0], alpha * iterations[1])
    total += np.where(beta >= 0, beta * rows[0], beta * rows[1])
    total += gamma * tokens
    return total.max(axis=0)
