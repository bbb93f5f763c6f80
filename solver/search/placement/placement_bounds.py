"""What no placement can be better than: a floor of every load's bottleneck, and patterns that cannot pay.

Both shrink a problem before it is solved, and hold for every placement within the limits.
"""

from __future__ import annotations

import bisect
import dataclasses

from solver.search.placement.placement_problem import Form, PlacementProblem


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A problem with what need not be looked at taken away.

    Attributes:
      useful: indices of patterns that may stand in a placement no worse than the value to beat, and within the limits.
      floors_ns: per load: no placement's bottleneck is below.
    """

    useful: tuple[int, ...]
    floors_ns: tuple[int, ...]


def reduce_problem(problem: PlacementProblem, upper: int | None) -> Reduced:
    """A stage alone bounds the bottleneck, with the rest of the layers at the least time per layer the path.

    What is left out may raise the floors, which may leave out more: repeated until nothing changes.
    """
    useful = tuple(range(len(problem.patterns)))
    most = [(form, upper) for form in problem.objective if upper is not None]
    most += [(limit.form, limit.most_ns) for limit in problem.limits]
    while True:
        floors = tuple(_floor_ns(problem, useful, load) for load in range(len(problem.micro_batches)))
        least = _least_per_layer(problem, useful)
        kept = tuple(index for index in useful if _may_pay(problem, index, floors, least, most))
        if kept == useful:
            return Reduced(useful, floors)
        useful = kept


def least_value_ns(problem: PlacementProblem) -> int:
    """A value that no placement is below, without solving anything."""
    useful = tuple(range(len(problem.patterns)))
    loads = range(len(problem.micro_batches))
    floors = [_floor_ns(problem, useful, load) for load in loads]
    least = _least_per_layer(problem, useful)
    path = [sum(int(problem.layers * least[role][load]) for role in problem.roles) for load in loads]
    return max(_at_least(form, problem.micro_batches, floors, path) for form in problem.objective)


def _may_pay(
    problem: PlacementProblem,
    index: int,
    floors: tuple[int, ...],
    least: dict[str, list[float]],
    most: list[tuple[Form, int]],
) -> bool:
    p = problem.patterns[index]
    slowest = [max(time_ns, floor) for time_ns, floor in zip(p.times_ns, floors, strict=True)]
    path = [
        time_ns + int((problem.layers - p.layers) * each)
        for time_ns, each in zip(p.times_ns, least[p.role], strict=True)
    ]
    return all(_at_least(form, problem.micro_batches, slowest, path) <= limit for form, limit in most)


def _least_per_layer(problem: PlacementProblem, useful: tuple[int, ...]) -> dict[str, list[float]]:
    """Per role and load: the least time per layer of any pattern."""
    loads = range(len(problem.micro_batches))
    patterns = [problem.patterns[index] for index in useful]
    return {
        role: [min((p.times_ns[i] / p.layers for p in patterns if p.role == role), default=0.0) for i in loads]
        for role in problem.roles
    }


def _floor_ns(problem: PlacementProblem, useful: tuple[int, ...], load: int) -> int:
    """The least bottleneck with which the islands hold all layers of every role that takes part.

    Hand-overs and the number of stages are not counted; layers of all roles share the devices.
    """
    quickest: dict[tuple[str, int, int, int], int] = {}
    for index in useful:
        p = problem.patterns[index]
        if p.times_ns[load]:
            key = (p.role, p.pool, p.tensor, p.layers)
            quickest[key] = min(p.times_ns[load], quickest.get(key, p.times_ns[load]))
    roles = sorted({role for role, *_ in quickest})
    needed = len(roles) * problem.layers
    if not roles:
        return 0
    rows = sorted((time_ns, pool, tensor, layers) for (_, pool, tensor, layers), time_ns in quickest.items())

    def holds(count: int) -> bool:
        widest: dict[tuple[int, int], int] = {}
        for _, pool, tensor, layers in rows[:count]:
            widest[pool, tensor] = max(layers, widest.get((pool, tensor), 0))
        return sum(
            shape.islands * _island(shape.island_size, pool, widest) for pool, shape in enumerate(problem.pools)
        ) >= (needed)

    found = bisect.bisect_left(range(len(rows) + 1), True, key=holds)
    return rows[min(found, len(rows)) - 1][0] if found else 0


def _island(size: int, pool: int, widest: dict[tuple[int, int], int]) -> int:
    """Most layers that an island holds, given the most per stage of each degree."""
    best = [0] * (size + 1)
    for devices in range(1, size + 1):
        best[devices] = max(
            (layers + best[devices - t] for (k, t), layers in widest.items() if k == pool and t <= devices), default=0
        )
        best[devices] = max(best[devices], best[devices - 1])
    return best[size]


def _at_least(form: Form, micro: tuple[int, ...], slowest: list[int], path: list[int]) -> int:
    return form.constant_ns + sum(
        form.pace[i] * max(m * slowest[i], path[i])
        + form.drained[i] * ((m - 1) * slowest[i] + path[i])
        + form.bottleneck[i] * slowest[i]
        for i, m in enumerate(micro)
    )
