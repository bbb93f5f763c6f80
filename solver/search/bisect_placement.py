"""The placement a second time: bisection over the slowest stage, then dynamic programming along the pipeline.

The pipeline is walked in the order in which it will stand on the devices: the next stage goes into the same island
while it has room, or, where the stage before it hands over by a farther link, into a new island of the host or a new
host of any pool. So hosts and hand-overs are not counted by formulas, as the CP-SAT model does, but happen.

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
from collections.abc import Iterable, Iterator

from solver.search.placement_problem import (
    Form,
    Pattern,
    Placement,
    PlacementProblem,
    broken_limits,
    form_ns,
    value_ns,
)

# How many prefixes of the sorted patterns a first pipeline is sought in, beyond the shortest.
_PREFIXES = 4
_ANYWHERE = -1


@dataclasses.dataclass(frozen=True)
class _State:
    """Where a walk along the pipeline stands.

    Attributes:
      role: index of the pipeline; all before it are complete.
      layers: placed, of that pipeline.
      pool: of the open island, or _ANYWHERE where the next stage opens a host.
      free: devices left in the open island; 0 where the next stage opens an island of the open host.
      islands_left: of the open host, not opened.
      used, blocks, host_blocks: per pool: devices, islands opened, hosts opened.
      first_pool: of the pipeline's first stage.
      opened: (islands, hosts) that earlier pipelines opened.
      used_before: per pool: devices of earlier pipelines.
      shared_islands, shared_hosts: per pool: how often a pipeline may have ended in the island, or host, it began in.
    """

    role: int
    layers: int
    pool: int
    free: int
    islands_left: int
    used: tuple[int, ...]
    blocks: tuple[int, ...]
    host_blocks: tuple[int, ...]
    first_pool: int
    opened: tuple[int, int]
    used_before: tuple[int, ...]
    shared_islands: tuple[int, ...]
    shared_hosts: tuple[int, ...]


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
    walk = _Walk(problem, range(len(problem.patterns)))
    upper = value_ns(problem, found) if found else None
    better = walk.best(upper, keep_all=True)
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
        return _Walk(problem, order[:size]).best(None, keep_all=False) is not None

    shortest = bisect.bisect_left(range(len(order) + 1), True, key=reaches)
    found: list[dict[int, int]] = []
    for step in range(_PREFIXES + 1):
        size = min(shortest, len(order)) + max(0, len(order) - shortest) * step // _PREFIXES
        counts = _Walk(problem, order[:size]).best(None, keep_all=False)
        if counts is not None and not broken_limits(problem, counts):
            found.append(counts)
    return min(found, key=lambda counts: value_ns(problem, counts), default=None)


class _Walk:
    """All pipelines out of some patterns."""

    def __init__(self, problem: PlacementProblem, allowed: Iterable[int]) -> None:
        self.problem = problem
        self.loads = range(len(problem.micro_batches))
        self.by_place: dict[tuple[str, int, str], list[int]] = {}
        for index in sorted(allowed):
            p = problem.patterns[index]
            self.by_place.setdefault((p.role, p.pool, p.position), []).append(index)
        self.role_most = {(role, pool): devices for role, pool, devices in problem.role_devices}
        self.rest = {role: self._least_paths(role) for role in problem.roles}

    def _least_paths(self, role: str) -> list[list[float]]:
        """[layers left][load]: the least path of that many layers up to the end, devices not counted."""
        layers = self.problem.layers
        chosen = [self.problem.patterns[i] for (r, _, _), group in self.by_place.items() if r == role for i in group]
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
        none = tuple(0 for _ in self.problem.pools)
        start = _State(0, 0, _ANYWHERE, 0, 0, none, none, none, _ANYWHERE, (0, 0), none, none, none)
        frontier: dict[_State, list[_Label]] = {start: [_Label(zeros, zeros)]}
        best: dict[int, int] | None = None
        for _ in range(self.problem.most_stages):
            following: dict[_State, list[_Label]] = {}
            for state, labels in frontier.items():
                for index, after in self._steps(state):
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

    def _steps(self, state: _State) -> Iterator[tuple[int, _State]]:
        """Patterns that may come next, with where they lead."""
        role = self.problem.roles[state.role]
        positions = ("first", "both") if state.layers == 0 else ("middle", "last")
        pools = range(len(self.problem.pools)) if state.pool == _ANYWHERE else (state.pool,)
        for pool in pools:
            opened = self._open(state, pool)
            if opened is None:
                continue
            for position in positions:
                for index in self.by_place.get((role, pool, position), ()):
                    after = self._place(opened, self.problem.patterns[index])
                    if after is not None:
                        yield index, after

    def _open(self, state: _State, pool: int) -> _State | None:
        """The state with an island open in `pool`."""
        shape = self.problem.pools[pool]
        if state.free:
            return state
        blocks, host_blocks, islands_left = list(state.blocks), list(state.host_blocks), state.islands_left
        blocks[pool] += 1
        if state.pool == _ANYWHERE:
            host_blocks[pool] += 1
            islands_left = shape.host_islands
        if not islands_left or blocks[pool] > shape.islands + 2 * len(self.problem.roles):
            return None
        return dataclasses.replace(
            state,
            pool=pool,
            free=shape.island_size,
            islands_left=islands_left - 1,
            blocks=tuple(blocks),
            host_blocks=tuple(host_blocks),
            first_pool=pool if state.layers == 0 else state.first_pool,
        )

    def _place(self, state: _State, pattern: Pattern) -> _State | None:
        """The state after a stage in the open island; None where it does not go there."""
        problem, pool = self.problem, pattern.pool
        layers, used = state.layers + pattern.layers, list(state.used)
        used[pool] += pattern.tensor
        ends = pattern.position in ("last", "both")
        if pattern.tensor > state.free or used[pool] > problem.pools[pool].devices:
            return None
        if used[pool] - state.used_before[pool] > self.role_most.get((pattern.role, pool), used[pool]):
            return None
        if layers > problem.layers or ends != (layers == problem.layers):
            return None
        state = dataclasses.replace(state, layers=layers, used=tuple(used), free=state.free - pattern.tensor)
        if ends:
            return self._finish(state, pool)
        if pattern.link == "island":
            return state if state.free else None
        if pattern.link == "host":
            return dataclasses.replace(state, free=0) if state.islands_left else None
        return dataclasses.replace(state, pool=_ANYWHERE, free=0, islands_left=0)

    def _finish(self, state: _State, pool: int) -> _State | None:
        """The state before the next pipeline, or behind all."""
        opened = (sum(state.blocks), sum(state.host_blocks))
        shared = [list(state.shared_islands), list(state.shared_hosts)]
        for counts, now, before in zip(shared, opened, state.opened, strict=True):
            # Whoever comes back to where it began was in two more places.
            counts[pool] += state.first_pool == pool and now - before >= 3
        role = state.role + 1
        if role == len(self.problem.roles):
            for k, shape in enumerate(self.problem.pools):
                if state.blocks[k] > shape.islands + shared[0][k] + role - 1:
                    return None
                if state.host_blocks[k] > len(shape.hosts) + shared[1][k] + role - 1:
                    return None
        return _State(
            role=role,
            layers=0,
            pool=_ANYWHERE,
            free=0,
            islands_left=0,
            used=state.used,
            blocks=state.blocks,
            host_blocks=state.host_blocks,
            first_pool=_ANYWHERE,
            opened=opened,
            used_before=state.used,
            shared_islands=tuple(shared[0]),
            shared_hosts=tuple(shared[1]),
        )

    def _extend(self, label: _Label, index: int, state: _State) -> _Label:
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

    def _hopeful(self, state: _State, label: _Label, upper: int | None) -> bool:
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
