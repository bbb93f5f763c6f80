"""One search over several cases: counts of micro-batches, placements, policies, each with its own box of candidates.

Cases are searched in the order of what they could be at best, each against the incumbent of those before it. As soon as
a case cannot beat the incumbent, neither it nor any behind it is searched, and the certificate covers them all.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from solver.search.proof.boxes import Bounds, Box, first_cuts
from solver.search.proof.branch_and_bound import Evaluate, Found, Progress, relative_gap, search
from solver.search.proof.limits import Limits


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One box of candidates under one policy, placement and pair of micro-batch counts.

    Attributes:
      bounds, evaluate, limits, box: as `search` takes them; limits differ in memory, by the stages of a placement.
    """

    bounds: Bounds
    evaluate: Evaluate
    limits: Limits
    box: Box

    def hope(self) -> float:
        """No candidate that keeps the limits exceeds it; minus infinity where none can keep them."""
        bound = self.bounds.bound(first_cuts(self.box), math.isfinite(self.limits.tpot_s))
        return float(np.max(bound.throughput_rps[self.limits.hopeful(bound)], initial=-math.inf))


@dataclasses.dataclass(frozen=True, eq=False)
class FoundAmong:
    """The outcome over all cases.

    Attributes:
      case: index of the best one; None if there is none.
      found: its search; with bound, gap, nodes, evaluated, complete, seconds and trace of all together.
      hopes: what each case could be at best, before it was searched.
      alone: each case's own search; None where it was not searched, its hope lying below the incumbent.
    """

    case: int | None
    found: Found
    hopes: tuple[float, ...]
    alone: tuple[Found | None, ...]


def search_several(
    cases: Sequence[Case],
    *,
    gap: float = 0.0,
    node_limit: int | None = None,
    time_limit_s: float = math.inf,
    incumbent: float | None = None,
    on_progress: Progress | None = None,
) -> FoundAmong:
    """The best candidate of all cases; arguments as in `search`, limits on nodes and time over all together."""
    began = time.monotonic()
    hopes = [case.hope() for case in cases]
    alone: list[Found | None] = [None] * len(cases)
    floor = -math.inf if incumbent is None else incumbent
    best, winner, trace = floor, -1, []
    nodes = evaluated = 0
    waiting = sorted(range(len(cases)), key=lambda index: (-hopes[index], index))
    open_bound = -math.inf  # over cases that are done, and those left out though they may beat the incumbent
    complete = True
    for at, index in enumerate(waiting):
        if hopes[index] == -math.inf or hopes[index] <= best + gap * abs(best):
            open_bound = max(open_bound, hopes[index])
            break
        left_s = time_limit_s - (time.monotonic() - began)
        if left_s <= 0 or (node_limit is not None and nodes >= node_limit):
            complete, open_bound = False, max(open_bound, hopes[index])
            break
        others = max([hopes[other] for other in waiting[at + 1 :]] + [open_bound])
        start_s = time.monotonic() - began

        def progress(seconds: float, value: float, bound: float, start: float = start_s, rest: float = others) -> None:
            trace.append((start + seconds, value, max(value, bound, rest)))
            if on_progress is not None:
                on_progress(*trace[-1])

        case = cases[index]
        found = search(
            case.bounds,
            case.evaluate,
            case.limits,
            case.box,
            gap=gap,
            node_limit=None if node_limit is None else node_limit - nodes,
            time_limit_s=left_s,
            incumbent=None if best == -math.inf else best,
            on_progress=progress,
        )
        alone[index] = found
        nodes, evaluated, complete = nodes + found.nodes, evaluated + found.evaluated, complete and found.complete
        open_bound = max(open_bound, found.bound)
        if found.best is not None:
            best, winner = found.objective, index
    won = alone[winner] if winner >= 0 else None
    # What was left out with a gap of 0 lies below the incumbent; what was cut short keeps its bound.
    bound = best if complete and gap == 0 else max(best, open_bound)
    together = Found(
        best=won.best if won else None,
        points=won.points if won else None,
        objective=won.objective if won else -math.inf,
        bound=bound,
        gap=relative_gap(best, bound),
        nodes=nodes,
        evaluated=evaluated,
        complete=complete,
        seconds=time.monotonic() - began,
        trace=tuple(trace),
    )
    return FoundAmong(winner if won else None, together, tuple(hopes), tuple(alone))
