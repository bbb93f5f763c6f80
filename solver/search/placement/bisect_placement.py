"""The placement a second time: bisection over the slowest stage, then dynamic programming along the pipeline.

The pipeline is walked in the order in which it will stand on the devices (`placement.pipeline_walk`), so nothing is
shared with the CP-SAT model but the problem.

A partial pipeline is a label: bottleneck and path under every load. Of the labels at one state (layers, stages,
devices and islands used) those that another equals or beats everywhere are dropped, and those that cannot beat the best
pipeline known, whatever follows. The first such pipeline comes from bisection: patterns sorted by the objective that
they alone enforce, the shortest prefix that still reaches the last layer, and the least total within it.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections.abc import Iterable

from solver.search.placement.pipeline_walk import State, Walk
from solver.search.placement.placement_problem import (
    Form,
    Placement,
    PlacementProblem,
    broken_limits,
    form_ns,
    value_ns,
)

# How many prefixes of the sorted patterns a first pipeline is sought in, beyond the shortest.
_PREFIXES = 4


@dataclasses.dataclass(frozen=True)
class _Label:
    """Bottleneck and path under every load, and how it came about."""

    slowest: tuple[int, ...]
    path: tuple[int, ...]
    pattern: int = -1
    before: _Label | None = None

    def beats(self, other: _Label) -> bool:
        return all(a <= b for a, b in zip(self.slowest, other.slowest, strict=True)) and all(
            a <= b for a, b in zip(self.path, other.path, strict=True)
        )

    def counts(self) -> dict[int, int]:
        found: dict[int, int] = {}
        label: _Label | None = self
        while label is not None and label.pattern >= 0:
            found[label.pattern] = found.get(label.pattern, 0) + 1
            label = label.before
        return found


def bisect_placement(problem: PlacementProblem) -> Placement:
    """The placement with the least objective; exact, and slow beyond some twenty devices.

    Raises:
      ValueError: the number of compiled shapes is limited, which labels do not know.
    """
    if problem.most_shapes is not None:
        raise ValueError("most_shapes: the second solver does not count shapes; leave it out")
    started = time.perf_counter()
    found = first_pipeline(problem)
    search = _Search(problem, range(len(problem.patterns)))
    upper = value_ns(problem, found) if found else None
    better = search.best(upper, keep_all=True)
    counts = better if better is not None else found
    value = value_ns(problem, counts) if counts else None
    return Placement(counts or {}, value, value, True, time.perf_counter() - started)


def first_pipeline(problem: PlacementProblem) -> dict[int, int] | None:
    """A good pipeline within the limits, by bisection; None where none was met, though there may be one."""
    alone = [
        max(form_ns(form, problem.micro_batches, list(p.times_ns), list(p.times_ns)) for form in problem.objective)
        for p in problem.patterns
    ]
    order = sorted(range(len(alone)), key=lambda index: (alone[index], index))

    def reaches(size: int) -> bool:
        return _Search(problem, order[:size]).best(None, keep_all=False) is not None

    shortest = bisect.bisect_left(range(len(order) + 1), True, key=reaches)
    found: list[dict[int, int]] = []
    for step in range(_PREFIXES + 1):
        size = min(shortest, len(order)) + max(0, len(order) - shortest) * step // _PREFIXES
        counts = _Search(problem, order[:size]).best(None, keep_all=False)
        if counts is not None and not broken_limits(problem, counts):
            found.append(counts)
    return min(found, key=lambda counts: value_ns(problem, counts), default=None)


class _Search:
    """The best pipeline out of some patterns."""

    def __init__(self, problem: PlacementProblem, allowed: Iterable[int]) -> None:
        self.problem, self.walk = problem, Walk(problem, allowed)
        self.loads = range(len(problem.micro_batches))
        self.rest = {role: self._least_paths(role) for role in problem.roles}

    def _least_paths(self, role: str) -> list[list[float]]:
        """[layers left][load]: the least path of that many layers up to the end, devices not counted."""
        layers = self.problem.layers
        chosen = [
            self.problem.patterns[i] for (r, _, _), group in self.walk.by_place.items() if r == role for i in group
        ]
        ends = [p for p in chosen if p.position in ("last", "both")]
        inner = [p for p in chosen if p.position in ("first", "middle")]
        least = [[0.0 if not left else math.inf for _ in self.loads] for left in range(layers + 1)]
        for left in range(1, layers + 1):
            for load in self.loads:
                options = [float(p.times_ns[load]) for p in ends if p.layers == left]
                options += [p.times_ns[load] + least[left - p.layers][load] for p in inner if p.layers < left]
                least[left][load] = min(options, default=math.inf)
        return least

    def best(self, upper: int | None, keep_all: bool) -> dict[int, int] | None:
        """The best pipeline that is below `upper`, or None.

        Args:
          upper: value to beat.
          keep_all: keep every label that no other beats; else the one of the least total per state, which is quick.
        """
        zeros = tuple(0 for _ in self.loads)
        frontier: dict[State, list[_Label]] = {self.walk.start(): [_Label(zeros, zeros)]}
        best: dict[int, int] | None = None
        for _ in range(self.problem.most_stages):
            following: dict[State, list[_Label]] = {}
            for state, labels in frontier.items():
                for index, after in self.walk.steps(state):
                    for label in labels:
                        longer = self._extend(label, index, state)
                        if after.role == len(self.problem.roles):
                            value = self._value(longer)
                            if value is not None and (upper is None or value < upper):
                                upper, best = value, longer.counts()
                        elif self._hopeful(after, longer, upper):
                            _keep(following.setdefault(after, []), longer, keep_all)
            frontier = following
        return best

    def _extend(self, label: _Label, index: int, state: State) -> _Label:
        pattern = self.problem.patterns[index]
        times = pattern.times_ns
        back = self.problem.path_ns if state.layers and pattern.position == "last" else (0,) * len(times)
        return _Label(
            tuple(max(a, b) for a, b in zip(label.slowest, times, strict=True)),
            tuple(a + b + (c if b else 0) for a, b, c in zip(label.path, times, back, strict=True)),
            index,
            label,
        )

    def _value(self, label: _Label) -> int | None:
        """Of a complete label; None where it breaks a limit."""
        slowest, path, micro = list(label.slowest), list(label.path), self.problem.micro_batches
        if any(form_ns(limit.form, micro, slowest, path) > limit.most_ns for limit in self.problem.limits):
            return None
        return max(form_ns(form, micro, slowest, path) for form in self.problem.objective)

    def _hopeful(self, state: State, label: _Label, upper: int | None) -> bool:
        """Whether some end of this label may beat `upper` and keep the limits."""
        path = list(map(float, label.path))
        for role in range(state.role, len(self.problem.roles)):
            left = self.problem.layers - (state.layers if role == state.role else 0)
            least = self.rest[self.problem.roles[role]][left]
            path = [a + b for a, b in zip(path, least, strict=True)]
        if any(math.isinf(each) for each in path):
            return False
        micro = self.problem.micro_batches
        if upper is not None and any(
            _form(form, micro, label.slowest, path) >= upper for form in self.problem.objective
        ):
            return False
        return all(_form(limit.form, micro, label.slowest, path) <= limit.most_ns for limit in self.problem.limits)


def _form(form: Form, micro: tuple[int, ...], slowest: tuple[int, ...], path: list[float]) -> int:
    return form_ns(form, micro, list(slowest), [math.floor(each) for each in path])


def _keep(labels: list[_Label], new: _Label, keep_all: bool) -> None:
    """Adds a label unless one of them beats it; drops those that it beats."""
    if not keep_all:
        if not labels or sum(new.path) < sum(labels[0].path):
            labels[:] = [new]
        return
    if any(label.beats(new) for label in labels):
        return
    labels[:] = [label for label in labels if not new.beats(label)]
    labels.append(new)
