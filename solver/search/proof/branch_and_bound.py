"""Best-first branch and bound over two integer variables, with a certificate.

The heart of the planner's search: B_E and N_D (or B_E and the rows in flight, where encode and decode run apart). Boxes
of candidates wait in a pool. Each round takes the most promising ones; small ones are evaluated exactly, others are cut
into four, and those parts survive whose bounds leave hope. When the best bound in the pool does not exceed the
incumbent, no candidate does: the gap is 0, with no assumption about the profile's shape (scheduling.md, 2.6). Rounds
hold many boxes because NumPy costs by the call. Counts, never clocks, decide what happens, except at the time limit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np

from solver.facts.workload import Ints
from solver.search.proof.boxes import Bounds, Box, Boxes, candidates, first_cuts, middles, quarters
from solver.search.proof.limits import THROUGHPUT, Goal, Limits
from solver.simulate.points import Points

Evaluate = Callable[[Ints, Ints], Points]
Candidate = tuple[int, int]

# Boxes that are cut, and candidates that are evaluated, in one round.
CUT_BOXES = 64
EVALUATED_POINTS = 32
# Boxes of no more candidates than this are evaluated whole.
LEAF_POINTS = 2
# Of boxes that are cut, so many have their middle evaluated, in hope of an incumbent.
PROBES = 4
# The share by which a time limit may be exceeded.
OVERRUN = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The outcome of a search.

    Attributes:
      best: the candidate (first variable, second variable); None if none keeps the limits (or beats `incumbent`).
      points: what is predicted of it, as a Points of one; None with `best`.
      objective: its value; minus infinity without one.
      bound: no candidate that keeps the limits has a higher value; minus infinity where none keeps them.
      gap: bound / objective - 1, at least 0; infinite without a best while candidates remain.
      nodes: boxes that were bounded.
      evaluated: candidates that were evaluated.
      complete: everything was fathomed: no limit on nodes or time struck.
      seconds: taken; the one field, with the trace's first column, that differs between equal searches.
      trace: (seconds, incumbent, bound) whenever one of them moved.
    """

    best: Candidate | None
    points: Points | None
    objective: float
    bound: float
    gap: float
    nodes: int
    evaluated: int
    complete: bool
    seconds: float
    trace: tuple[tuple[float, float, float], ...]


Progress = Callable[[float, float, float], None]


def search(
    bounds: Bounds,
    evaluate: Evaluate,
    limits: Limits,
    box: Box,
    *,
    gap: float = 0.0,
    node_limit: int | None = None,
    time_limit_s: float = math.inf,
    incumbent: float | None = None,
    goal: Goal = THROUGHPUT,
    on_progress: Progress | None = None,
) -> Found:
    """The best candidate of a box that keeps the limits, and the proof that there is no better one.

    Equal values are told apart by fewer requests in the first variable, then in the second, among those evaluated.

    Args:
      bounds: of the policy, on the floors of its placement.
      evaluate: exact predictions of candidates: (first [P], second [P]) -> Points of P; throughput 0 where it has none.
      limits: to be kept, all of them.
      box: ((first, last) of the first variable, (first, last) of the second), ends included, at least 1.
      gap: stop improving when no candidate can be better by more than this share; 0 proves the optimum.
      node_limit: boxes to bound at most.
      time_limit_s: seconds at most; the outcome then depends on the machine.
      incumbent: a value that is already had; only better candidates are of interest.
      on_progress: told (seconds, incumbent, bound) after each round.
    """
    for name, (low, high) in zip(("first", "second"), box, strict=True):
        if not 1 <= low <= high:
            raise ValueError(f"box: the {name} variable's range {low}..{high} is empty; give 1 <= low <= high")
    return _Search(bounds, evaluate, limits, goal, gap, incumbent).run(box, node_limit, time_limit_s, on_progress)


class _Search:
    """The pool of open boxes, highest bound first, and the incumbent."""

    def __init__(
        self,
        bounds: Bounds,
        evaluate: Evaluate,
        limits: Limits,
        goal: Goal,
        gap: float,
        incumbent: float | None,
    ) -> None:
        self._began = time.monotonic()
        self._bounds, self._evaluate, self._limits, self._goal, self._gap = bounds, evaluate, limits, goal, gap
        self._with_tpot = goal.with_tpot or math.isfinite(limits.tpot_s)
        self._floor = -math.inf if incumbent is None else incumbent
        self._best: Candidate | None = None
        self._points: Points | None = None
        self._objective = -math.inf
        self._given_up = -math.inf  # highest bound of a box that was fathomed though it may beat the incumbent
        self._nodes = self._evaluated = 0
        self._trace: list[tuple[float, float, float]] = []
        none = np.zeros(0, np.int64)
        self._open, self._values = Boxes(none, none, none, none), np.zeros(0)

    def run(
        self,
        box: Box,
        node_limit: int | None,
        time_limit_s: float,
        on_progress: Progress | None,
    ) -> Found:
        self._add(first_cuts(box))
        round_s = 0.0
        while len(self._open) and (node_limit is None or self._nodes < node_limit):
            now_s = time.monotonic() - self._began
            # A round like the last one should not end far behind the limit.
            if now_s >= time_limit_s or now_s + round_s > (1 + OVERRUN) * time_limit_s:
                break
            self._round()
            self._note(on_progress)
            round_s = time.monotonic() - self._began - now_s
        bound = self._bound()
        return Found(
            best=self._best,
            points=self._points,
            objective=self._objective,
            bound=bound,
            gap=relative_gap(max(self._objective, self._floor), bound),
            nodes=self._nodes,
            evaluated=self._evaluated,
            complete=not len(self._open),
            seconds=time.monotonic() - self._began,
            trace=tuple(self._trace),
        )

    def _round(self) -> None:
        """Evaluates the most promising small boxes, cuts the most promising large ones."""
        order = np.argsort(-self._values, kind="stable")[:CUT_BOXES]
        small = self._open.points[order] <= LEAF_POINTS
        leaves = order[small][: EVALUATED_POINTS // LEAF_POINTS]
        cuts = order[~small]
        taken = np.concatenate([leaves, cuts])
        chosen, cut = self._open.take(leaves), self._open.take(cuts)
        rest = np.ones(len(self._open), bool)
        rest[taken] = False
        self._open, self._values = self._open.take(rest), self._values[rest]
        firsts, seconds = candidates(chosen)
        probes = middles(cut.take(np.arange(min(len(cut), PROBES))))
        self._try(np.concatenate([firsts, probes[0]]), np.concatenate([seconds, probes[1]]))
        self._fathom()
        if len(cut):
            self._add(quarters(cut))

    def _add(self, boxes: Boxes) -> None:
        """Bounds boxes and keeps those with hope."""
        self._nodes += len(boxes)
        bound = self._bounds.bound(boxes, self._with_tpot)
        values = self._goal.of_boxes(bound)
        hope = self._limits.hopeful(bound)
        self._open = self._open.joined(boxes.take(hope))
        self._values = np.concatenate([self._values, values[hope]])
        self._fathom()

    def _fathom(self) -> None:
        """Drops boxes that cannot beat the incumbent by more than the gap."""
        best = max(self._objective, self._floor)
        if best == -math.inf:
            return
        hope = self._values > best + self._gap * abs(best)
        if not hope.all():
            self._given_up = max(self._given_up, float(self._values[~hope].max()))
            self._open, self._values = self._open.take(hope), self._values[hope]

    def _try(self, firsts: Ints, seconds: Ints) -> None:
        """Evaluates candidates; the best that keeps the limits may become the incumbent."""
        if not len(firsts):
            return
        points = self._evaluate(firsts, seconds)
        self._evaluated += len(firsts)
        values = np.where(self._limits.kept(points), self._goal.of_points(points), -np.inf)
        at = int(np.lexsort((seconds, firsts, -values))[0])
        candidate = int(firsts[at]), int(seconds[at])
        value = float(values[at])
        better = value > self._objective or (
            value == self._objective and self._best is not None and candidate < self._best
        )
        if value > self._floor and better:
            self._best, self._objective = candidate, value
            self._points = _point(points, at)

    def _bound(self) -> float:
        best = max(self._objective, self._floor)
        open_bound = float(self._values.max()) if len(self._values) else -math.inf
        if self._gap > 0 and self._given_up > best:
            open_bound = max(open_bound, self._given_up)
        return max(best, open_bound)

    def _note(self, on_progress: Progress | None) -> None:
        now = time.monotonic() - self._began, max(self._objective, self._floor), self._bound()
        if not self._trace or self._trace[-1][1:] != now[1:]:
            self._trace.append(now)
        if on_progress is not None:
            on_progress(*now)


def relative_gap(value: float, bound: float) -> float:
    """By which share the bound exceeds the value; 0 where there is nothing to find, infinite while nothing is found."""
    if value == -math.inf:
        return 0.0 if bound == -math.inf else math.inf
    return max(0.0, (bound - value) / abs(value)) if value else math.inf


def _point(points: Points, at: int) -> Points:
    """One candidate's predictions."""
    picked = {field.name: getattr(points, field.name)[..., at : at + 1] for field in dataclasses.fields(points)}
    return Points(**picked)
