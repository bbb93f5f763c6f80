"""Floors for an engine of compiled shapes, whose decode calls take one of a few numbers of rows.

There an iteration of n expected rows costs a mean over rungs: the rung that holds everybody, with everybody random
about n. Let h(r) be the least time of any rung from r on, and g a convex curve below h. The rung is no less than the
residents R - 1/2, unless R exceeds the last rung M >= n, so by Jensen the mean is at least g(n - 1/2 - E[(R - n)+]);
that excess of a normal R with variance at most n is at most 0.4 sqrt(n). No order in the profile is needed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats
from solver.search.proof.floors import Floors
from solver.search.proof.hulls import lines_below

# The simulator's normal distribution function errs by 1.5e-7.
KEEP = 1 - 1e-5


def padded(floors: Floors) -> Floors:
    """Floors of the same placement under a padded profile; one context stands for all, the cheapest rung of them."""
    lines = rung_lines(floors.decode_s[:, 1:].min(axis=0))
    # Another row less, so that straight lines between whole n stay below the convex curve.
    rows = np.arange(floors.most_rows + 1, dtype=np.float64)
    reached = np.maximum(0.0, rows - 1.5 - 0.4 * np.sqrt(rows))
    decode = (lines[:, :1] + lines[:, 1:] * reached).max(axis=0)
    drain = np.full_like(decode, floors.drain_s[:, 1:].min())
    return dataclasses.replace(
        floors, contexts=floors.contexts[:1], decode_s=KEEP * decode[None], drain_s=KEEP * drain[None]
    )


def rung_lines(least_s: Floats) -> Floats:
    """float64 [lines, 2]: (alpha, beta), beta >= 0: the convex curve below the least time of any rung from each on.

    `least_s`: float64 [r]: of a rung of 1, 2, .. rows.
    """
    from_here = np.minimum.accumulate(least_s[::-1])[::-1]
    heights = np.concatenate([from_here[:1], from_here])
    lines = lines_below(heights)
    return np.concatenate([lines[lines[:, 1] >= 0], [[heights.min(), 0.0]]])
