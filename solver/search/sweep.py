"""Looking at many candidates at once: the best that keeps the limits, and the one that comes nearest to them."""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats
from solver.search.proof.limits import Limits
from solver.simulate.points import Points


def pick(points: Points, at: int) -> Points:
    """One candidate's predictions."""
    return Points(**{f.name: getattr(points, f.name)[..., at : at + 1] for f in dataclasses.fields(points)})


def excess(points: Points, limits: Limits) -> Floats:
    """float64 [P]: the largest share of a limit that a candidate takes; infinite where it was refused."""
    shares = [limits.memory_share(points)]
    for name in ("latency_s", "ttft_s", "tpot_s"):
        limit = getattr(limits, name)
        if np.isfinite(limit):
            shares.append(getattr(points, name) / limit)
    return np.where(points.throughput_rps > 0, np.maximum.reduce(shares), np.inf)


def nearest_of(points: Points, limits: Limits) -> tuple[float, int] | None:
    """(excess, index) of the candidate that comes nearest; None where all were refused or wait for ever."""
    found = excess(points, limits)
    at = int(found.argmin())
    return (float(found[at]), at) if np.isfinite(found[at]) else None
