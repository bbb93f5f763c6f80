"""Why nothing keeps the limits: what each could be at best, and which of them, relaxed alone, would open the way.

Every figure is the outcome of the same proof search with another goal, so "the nearest latency that works" is a proven
least, not the last one tried (scheduling.md, F7).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.search.proof.boxes import Bounds, Box, BoxBounds
from solver.search.proof.branch_and_bound import Candidate, Evaluate, search
from solver.search.proof.limits import Goal, Limits
from solver.simulate.points import Points

# Least memory is sought to within this share: it is reported in words, and its bound leaves out temporaries.
_MEMORY_GAP = 0.02


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """What one limit would have to be.

    Attributes:
      name: "latency_s", "ttft_s", "tpot_s" or "memory".
      limit: as asked; for memory 1, the share of the fullest device.
      alone: the least that it can be with no other limit but memory (for memory: with no other at all).
      nearest: the least that it can be with all other limits kept; None where relaxing it alone does not help.
      candidate: where `nearest` is had.
      stage: for memory: the stage that is fullest there.
    """

    name: str
    limit: float
    alone: float | None
    nearest: float | None
    candidate: Candidate | None
    stage: int | None = None

    @property
    def binds(self) -> bool:
        """Even with nothing else asked, it cannot be kept."""
        return self.alone is None or self.alone > self.limit


def why_infeasible(
    bounds: Bounds, evaluate: Evaluate, limits: Limits, box: Box, *, node_limit: int = 20_000
) -> tuple[Relaxed, ...]:
    """One entry per limit that is finite, those first that cannot be kept even alone."""
    found = []
    for name in ("latency_s", "ttft_s", "tpot_s"):
        if math.isfinite(getattr(limits, name)):
            goal = _least(name)
            alone = search(
                bounds, evaluate, Limits(memory_bytes=limits.memory_bytes), box, goal=goal, node_limit=node_limit
            )
            others = limits.without(name)
            nearest = search(bounds, evaluate, others, box, goal=goal, node_limit=node_limit)
            found.append(
                Relaxed(
                    name,
                    getattr(limits, name),
                    None if alone.best is None else -alone.objective,
                    None if nearest.best is None else -nearest.objective,
                    nearest.best,
                )
            )
    if limits.memory_bytes:
        found.append(_memory(bounds, evaluate, limits, box, node_limit))
    return tuple(sorted(found, key=lambda relaxed: not relaxed.binds))


def _least(name: str) -> Goal:
    def of_points(points: Points) -> np.ndarray:
        return -getattr(points, name)

    def of_boxes(bound: BoxBounds) -> np.ndarray:
        return -getattr(bound, name)

    return Goal(f"least {name}", of_points, of_boxes, with_tpot=name == "tpot_s")


def _memory(bounds: Bounds, evaluate: Evaluate, limits: Limits, box: Box, node_limit: int) -> Relaxed:
    goal = Goal("least memory", lambda points: -limits.memory_share(points), lambda bound: -bound.memory_share)
    free = dataclasses.replace(limits, memory_bytes=())
    alone = search(bounds, evaluate, Limits(), box, goal=goal, node_limit=node_limit, gap=_MEMORY_GAP)
    nearest = search(bounds, evaluate, free, box, goal=goal, node_limit=node_limit, gap=_MEMORY_GAP)
    stage = None
    if nearest.points is not None:
        stage = int((nearest.points.memory_bytes[:, 0] / np.array(limits.memory_bytes)).argmax())
    return Relaxed(
        "memory",
        1.0,
        None if alone.best is None else -alone.objective,
        None if nearest.best is None else -nearest.objective,
        nearest.best,
        stage,
    )
