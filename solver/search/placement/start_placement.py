"""A good placement at once: equal degrees within each pool, the slowest stage as quick as bisection makes it.

It is where CP-SAT starts from. A value to beat leaves out most patterns before the search begins, which is worth more
than the search itself; how good it is decides nothing but time.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from solver.facts.cluster import Level
from solver.plan.schedule import Role
from solver.search.placement.check_placement import faults_of
from solver.search.placement.placement_problem import PlacementProblem, Position, value_ns
from solver.search.placement.pools import Host, Pool

# Numbers of stages that are tried per pool and degree, and pipelines that are tried in all.
_COUNTS = {1: 48, 2: 7}
_MOST_TRIED = 2000
_REORDERED = 8
# Ways to deal each pool's hosts to two pipelines, and in all.
_CUTS, _MOST_CUTS = 6, 36
_MOST_REORDERED_POOLS = 3

_Slot = tuple[int, int, Position, Level | None]
_Choice = tuple[int, int, int]


def start_placement(problem: PlacementProblem) -> dict[int, int] | None:
    """Counts of the best placement tried that keeps the limits; None where none did, though there may be one.

    Pools are tried in their order first; then other orders of those that did best. Two pipelines on devices apart get
    whole hosts each.
    """
    if len(problem.roles) != 1:
        return _start_apart(problem)
    tables = _tables(problem, problem.roles[0])
    tried = [
        (value, number, choice, counts)
        for number, choice in enumerate(itertools.islice(_choices(problem, tables), _MOST_TRIED))
        for value, counts in _tried(problem, tables, choice)
    ]
    tried.sort(key=lambda each: each[:2])
    for _, _, choice, _ in tried[:_REORDERED]:
        for order in _orders(choice):
            tried += [(value, len(tried), order, counts) for value, counts in _tried(problem, tables, order)]
    return min(tried, key=lambda each: each[:2])[3] if tried else None


def _start_apart(problem: PlacementProblem) -> dict[int, int] | None:
    """The best of two pipelines, each found alone on its hosts, over some ways to deal the hosts."""
    cuts = [sorted({len(p.hosts) * i // _CUTS for i in range(_CUTS + 1)}) for p in problem.pools]
    best: tuple[int, dict[int, int]] | None = None
    for cut in itertools.islice(itertools.product(*cuts), _MOST_CUTS):
        encode = _alone(problem, problem.roles[0], [p.hosts[:n] for p, n in zip(problem.pools, cut, strict=True)])
        decode = _alone(problem, problem.roles[1], [p.hosts[n:] for p, n in zip(problem.pools, cut, strict=True)])
        if encode is None or decode is None or faults_of(problem, counts := {**encode, **decode}):
            continue
        value = value_ns(problem, counts)
        if best is None or value < best[0]:
            best = value, counts
    return best[1] if best else None


def _alone(problem: PlacementProblem, role: Role, hosts: Sequence[tuple[Host, ...]]) -> dict[int, int] | None:
    """One pipeline on some of the hosts of every pool; its patterns' indices are the problem's."""
    kept = [index for index, each in enumerate(hosts) if each]
    pools = tuple(Pool(problem.pools[index].kind, hosts[index]) for index in kept)
    mine = [i for i, p in enumerate(problem.patterns) if p.role == role and p.pool in kept]
    if not mine:
        return None
    patterns = tuple(dataclasses.replace(p, pool=kept.index(p.pool)) for p in map(problem.patterns.__getitem__, mine))
    # Of the objective's forms, the one that this pipeline's loads appear in.
    active = [i for i in range(len(problem.micro_batches)) if any(p.times_ns[i] for p in patterns)]
    forms = tuple(f for f in problem.objective if any(f.pace[i] or f.drained[i] or f.bottleneck[i] for i in active))
    part = dataclasses.replace(
        problem,
        pools=pools,
        patterns=patterns,
        roles=(role,),
        most_stages=problem.most_stages - 1,
        objective=forms or problem.objective,
        role_devices=(),
    )
    counts = start_placement(part)
    return None if counts is None else {mine[index]: n for index, n in counts.items()}


def _tried(
    problem: PlacementProblem, tables: dict[_Slot, _Table], choice: Sequence[_Choice]
) -> list[tuple[int, dict[int, int]]]:
    """Value and counts of one choice; nothing where it is no placement within the limits."""
    counts = _spread(problem, tables, collections.Counter(_slots(problem, choice)))
    if counts is None or faults_of(problem, counts):
        return []
    return [(value_ns(problem, counts), counts)]


def _orders(choice: Sequence[_Choice]) -> Iterator[tuple[_Choice, ...]]:
    """Other orders of the pools, and those that end where they began."""
    if not 1 < len(choice) <= _MOST_REORDERED_POOLS:
        return
    for order in itertools.permutations(choice):
        yield order
        pool, tensor, count = order[0]
        if count > 1:
            yield (pool, tensor, count - 1), *order[1:], (pool, tensor, 1)


class _Table:
    """Patterns of one slot by rising layers, each with one figure for how slow it is."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.cost: list[int] = []
        self.index: list[int] = []


def _tables(problem: PlacementProblem, role: Role) -> dict[_Slot, _Table]:
    """Per slot. A pattern's figure is what the objective gains per nanosecond of bottleneck, summed over the loads."""
    form = problem.objective[0]
    factors = [form.pace[i] * m + form.drained[i] * m + form.bottleneck[i] for i, m in enumerate(problem.micro_batches)]
    tables: dict[_Slot, _Table] = collections.defaultdict(_Table)
    for index in sorted(range(len(problem.patterns)), key=lambda i: problem.patterns[i].layers):
        p = problem.patterns[index]
        if p.role == role:
            table = tables[p.pool, p.tensor, p.position, p.link]
            table.layers.append(p.layers)
            table.cost.append(sum(f * t for f, t in zip(factors, p.times_ns, strict=True)))
            table.index.append(index)
    return tables


def _choices(problem: PlacementProblem, tables: dict[_Slot, _Table]) -> Iterator[tuple[_Choice, ...]]:
    """(pool, degree, stages) of every pool in use."""
    options: list[list[_Choice | None]] = []
    for pool, shape in enumerate(problem.pools):
        here: list[_Choice | None] = [None]
        for tensor in sorted({slot[1] for slot in tables if slot[0] == pool}):
            most = min(shape.islands * (shape.island_size // tensor), problem.most_stages, problem.layers)
            numbers = _COUNTS.get(len(problem.pools), 4)
            # The largest numbers matter most: they use the pool to the full.
            tried = {max(1, round(most * (1 - (i / numbers) ** 1.5))) for i in range(numbers)} | {1}
            here += [(pool, tensor, count) for count in sorted(tried, reverse=True)]
        options.append(here)
    for chosen in itertools.product(*options):
        used = tuple(choice for choice in chosen if choice is not None)
        if used and sum(count for _, _, count in used) <= min(problem.most_stages, problem.layers):
            yield used


def _slots(problem: PlacementProblem, choice: Sequence[_Choice]) -> Iterator[_Slot]:
    """Stages in the order of the devices: island after island, host after host, pool after pool."""
    total, done = sum(count for _, _, count in choice), 0
    for pool, tensor, count in choice:
        shape = problem.pools[pool]
        per_island = shape.island_size // tensor
        for i in range(count):
            done += 1
            link: Level | None = "island"
            if (i + 1) % per_island == 0:
                link = "host" if (i + 1) // per_island % shape.host_islands else "pod"
            if i == count - 1:
                link = "pod" if done < total else None
            position: Position = "middle"
            if total == 1:
                position = "both"
            elif done == total:
                position = "last"
            elif done == 1:
                position = "first"
            yield pool, tensor, position, link


def _spread(
    problem: PlacementProblem, tables: dict[_Slot, _Table], slots: collections.Counter[_Slot]
) -> dict[int, int] | None:
    """Layers to stages so that the slowest is as quick as can be; None where memory does not hold them all."""
    if any(slot not in tables for slot in slots):
        return None
    chosen = [(tables[slot], count) for slot, count in slots.items()]

    def held(cost: int) -> list[int]:
        """Index of the largest pattern of every slot within the cost; -1: none."""
        return [bisect.bisect_right(table.cost, cost) - 1 for table, _ in chosen]

    def reaches(cost: int) -> bool:
        places = held(cost)
        if min(places) < 0:
            return False
        return sum(t.layers[i] * n for (t, n), i in zip(chosen, places, strict=True)) >= problem.layers

    costs = sorted({cost for table, _ in chosen for cost in table.cost})
    found = bisect.bisect_left(costs, True, key=reaches)
    if found == len(costs):
        return None
    stages = [table for table, count in chosen for _ in range(count)]
    places = [i for (_, count), i in zip(chosen, held(costs[found]), strict=True) for _ in range(count)]
    return _trim(problem, stages, places)


def _trim(problem: PlacementProblem, stages: list[_Table], places: list[int]) -> dict[int, int] | None:
    """Takes what is too many off the slowest stages."""
    left = sum(table.layers[i] for table, i in zip(stages, places, strict=True)) - problem.layers
    while left > 0:
        wide = [s for s, i in enumerate(places) if i > 0]
        if not wide:
            return None
        slowest = max(wide, key=lambda s: stages[s].cost[places[s]])
        places[slowest] -= 1
        left -= stages[slowest].layers[places[slowest] + 1] - stages[slowest].layers[places[slowest]]
    if left < 0:
        return None
    return dict(collections.Counter(table.index[i] for table, i in zip(stages, places, strict=True)))
