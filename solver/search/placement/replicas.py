"""How many identical copies of a pipeline: one placement problem per number of copies, the best of them proven.

Copies share nothing, so R of them on equal shares of the devices serve R batches per period: what counts is the period
over R. Numbers of copies that the tree does not divide into alike shares are not tried (`pools.replica_counts`). Each
problem is solved only for what would beat the best so far, so most are closed without a search.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

from solver.search.placement.cp_placement import best_placement
from solver.search.placement.placement_problem import Placement, PlacementProblem, value_ns
from solver.search.placement.pools import Pool, replica_counts, share_pools
from solver.search.placement.start_placement import start_placement

MakeProblem = Callable[[int, tuple[Pool, ...]], PlacementProblem | None]


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The best number of copies and the placement of each.

    Attributes:
      copies: 0 where no placement was found.
      pools: of each copy.
      problem, placement: of one copy; its counts serve the pools of every other, which are of the same shapes.
      bound_ns: no placement of any number of copies has a period over copies below it; None: none exists.
      proven: nothing better exists.
      seconds: the search for each number of copies.
    """

    copies: int
    pools: tuple[tuple[Pool, ...], ...]
    problem: PlacementProblem | None
    placement: Placement | None
    bound_ns: float | None
    proven: bool
    seconds: Mapping[int, float]

    @property
    def value_ns(self) -> float | None:
        """Period over copies."""
        if self.placement is None or self.placement.value_ns is None:
            return None
        return self.placement.value_ns / self.copies


def best_replicas(
    pools: Sequence[Pool], make_problem: MakeProblem, time_limit_s: float, counts: Sequence[int] | None = None
) -> Replicas:
    """Searches every number of copies, the most promising first.

    Args:
      pools: all devices.
      make_problem: (copies, pools of one copy) -> its problem; None where that number is not wanted.
      time_limit_s: for all of them.
      counts: numbers of copies; None: all that the pools divide into.
    """
    deadline = time.perf_counter() + time_limit_s
    started: dict[int, tuple[PlacementProblem, dict[int, int] | None]] = {}
    shares = {copies: share_pools(pools, copies) for copies in counts or replica_counts(pools)}
    for copies, share in shares.items():
        problem = make_problem(copies, share[0])
        if problem is not None:
            started[copies] = problem, start_placement(problem)

    def promise(copies: int) -> float:
        problem, hint = started[copies]
        return value_ns(problem, hint) / copies if hint else math.inf

    best: tuple[float, int, Placement] | None = None
    bounds: list[float] = []
    proven = True
    seconds: dict[int, float] = {}
    for copies in sorted(started, key=lambda c: (promise(c), c)):
        problem, hint = started[copies]
        beat = None if best is None else math.ceil(best[0] * copies) - 1
        found = best_placement(problem, max(0.0, deadline - time.perf_counter()), hint, beat)
        seconds[copies] = found.seconds
        proven = proven and found.proven
        if found.bound_ns is not None:
            bounds.append(found.bound_ns / copies)
        if found.value_ns is not None and (best is None or found.value_ns / copies < best[0]):
            best = found.value_ns / copies, copies, found
    if best is None:
        return Replicas(0, (), None, None, min(bounds, default=None), proven, seconds)
    value, copies, placement = best
    bound = min(value, *bounds)
    return Replicas(copies, shares[copies], started[copies][0], placement, bound, proven, seconds)
