"""Where to put the layers, as a whole-number problem: patterns, sums over them, what is minimised and limited.

A pattern is a way in which one stage may look: pool, tensor degree, number of layers, place in the pipeline, level of
the link it hands over by, and its times under each load. A placement is how often each pattern occurs. Under one load
it has a bottleneck M (slowest stage) and a path S (all stages, and the way back), and every quantity of interest is
linear in three figures of each load: the pace max(m M, S), the drained pass (m - 1) M + S, and M.

Both solvers read this file and nothing of each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from solver.facts.cluster import Level
from solver.plan.schedule import Role
from solver.search.placement.pools import Pool

Position = Literal["first", "middle", "last", "both"]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One way in which a stage may look.

    Attributes:
      role: which phases run there.
      pool: index.
      tensor: degree.
      layers: how many.
      position: "first" carries the embedding, "last" the head, "both" is the whole pipeline.
      link: level of the link to the next stage; None for last and both.
      times_ns: per load; 0 where the role does not take part.
      memory_bytes: per device.
    """

    role: Role
    pool: int
    tensor: int
    layers: int
    position: Position
    link: Level | None
    times_ns: tuple[int, ...]
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Form:
    """A linear form of a placement, in whole nanoseconds: a period, a latency, a cycle.

    Attributes:
      name: for people.
      pace: per load, factor of max(m M, S): iterations that follow one another.
      drained: per load, factor of (m - 1) M + S: passes that fill and drain the pipeline. The last iteration of a
        decode phase belongs here, since max(m M, S) + min(S - M, (m - 1) M) is just that.
      bottleneck: per load, factor of M.
      constant_ns: added.
    """

    name: str
    pace: tuple[int, ...]
    drained: tuple[int, ...]
    bottleneck: tuple[int, ...]
    constant_ns: int = 0


@dataclasses.dataclass(frozen=True)
class Limit:
    form: Form
    most_ns: int


@dataclasses.dataclass(frozen=True)
class PlacementProblem:
    """What both solvers minimise.

    Attributes:
      pools: what there is.
      patterns: candidates, none of which exceeds a device's memory.
      roles: one pipeline each: ("both",), or ("encode", "decode") on devices apart.
      layers: of each pipeline.
      most_stages: of all pipelines together.
      micro_batches: per load, m.
      path_ns: per load: the way back from last to first stage, where there is more than one; part of S.
      objective: the largest of these is minimised; their factors are not negative.
      limits: none of these may be exceeded.
      most_shapes: how many different (pool, tensor, layers) a placement may have, each of which is compiled apart;
        None: no matter.
      role_devices: (role, pool, devices) that the role's pipeline may have there; pairs not named: all.
    """

    pools: tuple[Pool, ...]
    patterns: tuple[Pattern, ...]
    roles: tuple[Role, ...]
    layers: int
    most_stages: int
    micro_batches: tuple[int, ...]
    path_ns: tuple[int, ...]
    objective: tuple[Form, ...]
    limits: tuple[Limit, ...] = ()
    most_shapes: int | None = None
    role_devices: tuple[tuple[Role, int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Placement:
    """What a solver found.

    Attributes:
      counts: index of pattern -> how many stages; empty where nothing was found.
      value_ns: of the objective; None where nothing was found.
      bound_ns: no placement is below it; None: none exists at all (where nothing was found and `proven`).
      proven: value and bound are the same, or it is proven that no placement exists.
      seconds: how long it took.
    """

    counts: Mapping[int, int]
    value_ns: int | None
    bound_ns: int | None
    proven: bool
    seconds: float

    @property
    def value_s(self) -> float | None:
        return None if self.value_ns is None else self.value_ns / 1e9

    @property
    def bound_s(self) -> float | None:
        return None if self.bound_ns is None else self.bound_ns / 1e9

    @property
    def gap(self) -> float:
        """(value - bound) / value; infinite where nothing was found."""
        if self.value_ns is None or self.bound_ns is None:
            return 0.0 if self.proven else float("inf")
        return (self.value_ns - self.bound_ns) / max(1, self.value_ns)


def form_ns(form: Form, micro_batches: tuple[int, ...], bottleneck_ns: list[int], path_ns: list[int]) -> int:
    """The form's value at these M and S of each load."""
    total = form.constant_ns
    for i, (m, slowest, path) in enumerate(zip(micro_batches, bottleneck_ns, path_ns, strict=True)):
        total += form.pace[i] * max(m * slowest, path)
        total += form.drained[i] * ((m - 1) * slowest + path)
        total += form.bottleneck[i] * slowest
    return total


def aggregates_ns(problem: PlacementProblem, counts: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """M and S of each load, over whatever pipelines take part in it."""
    slowest, path = [0] * len(problem.micro_batches), [0] * len(problem.micro_batches)
    several = [False] * len(problem.micro_batches)
    for index, count in counts.items():
        pattern = problem.patterns[index]
        for load, time_ns in enumerate(pattern.times_ns):
            if count and time_ns:
                slowest[load] = max(slowest[load], time_ns)
                path[load] += count * time_ns
                several[load] |= pattern.position != "both"
    return slowest, [
        total + (back if more else 0) for total, back, more in zip(path, problem.path_ns, several, strict=True)
    ]


def value_ns(problem: PlacementProblem, counts: Mapping[int, int]) -> int:
    """The objective's value of a placement."""
    slowest, path = aggregates_ns(problem, counts)
    return max(form_ns(form, problem.micro_batches, slowest, path) for form in problem.objective)


def broken_limits(problem: PlacementProblem, counts: Mapping[int, int]) -> tuple[str, ...]:
    """Names of the limits that a placement exceeds."""
    slowest, path = aggregates_ns(problem, counts)
    return tuple(
        limit.form.name
        for limit in problem.limits
        if form_ns(limit.form, problem.micro_batches, slowest, path) > limit.most_ns
    )
