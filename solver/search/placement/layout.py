"""From a placement to devices: which stage stands where, in which order, and over which links it then hands over.

Blocks of stages (`placement.stage_blocks`) get a host each while there are enough, the widest first. Whatever the
placement was charged, the resulting pipeline carries the links that its devices have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from solver.facts.cluster import Cluster, Level
from solver.plan.schedule import Role, StageSpec
from solver.search.placement.placement_problem import Pattern, PlacementProblem
from solver.search.placement.pools import Pool
from solver.search.placement.stage_blocks import Block, host_blocks
from solver.simulate.costs import Pipeline, PlacedStage, UnitCosts


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """One pipeline on devices.

    Attributes:
      role: of its stages.
      stages: with device ids, in order.
      patterns: what each stage was counted as, with the link it really has.
    """

    role: Role
    stages: tuple[StageSpec, ...]
    patterns: tuple[Pattern, ...]

    @property
    def links(self) -> tuple[Level | None, ...]:
        return tuple(pattern.link for pattern in self.patterns)


def lay_out(problem: PlacementProblem, counts: Mapping[int, int]) -> tuple[LaidOut, ...]:
    """One pipeline per role.

    Raises:
      ValueError: the counts are no placement of the problem.
    """
    room = [_Room(pool) for pool in problem.pools]
    hosts: list[list[list[Block]]] = []
    for role in problem.roles:
        chosen = [
            problem.patterns[i] for i in sorted(counts) for _ in range(counts[i]) if problem.patterns[i].role == role
        ]
        hosts.append(host_blocks(problem.pools, chosen))
    places = _assign(problem.pools, hosts, room)
    if places is None:
        room = [_Room(pool) for pool in problem.pools]
        hosts = [[[block] for host in each for block in host] for each in hosts]
        places = _assign(problem.pools, hosts, room) or _pack_afresh(problem.pools, hosts)
    found = []
    for role, (stages, ids) in zip(problem.roles, places, strict=True):
        found.append(_pipeline(problem.pools, role, stages, ids))
    return tuple(found)


def pipeline_of(
    laid_out: LaidOut,
    cluster_pools: Sequence[Pool],
    units: Mapping[tuple[str, int], UnitCosts],
    return_s: float = 0.0,
) -> Pipeline:
    """The stages in the terms of their costs, over the links that they have."""
    last = len(laid_out.stages) - 1
    placed = tuple(
        PlacedStage(
            unit=units[cluster_pools[pattern.pool].kind, pattern.tensor],
            layers=pattern.layers,
            first=index == 0,
            last=index == last,
            link=pattern.link,
        )
        for index, pattern in enumerate(laid_out.patterns)
    )
    return Pipeline(placed, return_s if last else 0.0)


def level_between(cluster: Cluster, first: Sequence[int], second: Sequence[int]) -> Level:
    """Level of the link that two groups of devices hand over by: the highest between any two of them."""
    devices = cluster.devices()
    ends = [(devices[a], devices[b]) for a in first for b in second]
    if any(a.host != b.host for a, b in ends):
        return "pod"
    return "host" if any(a.island != b.island for a, b in ends) else "island"


class _Room:
    """Free devices of a pool: [host][island] -> ids."""

    def __init__(self, pool: Pool) -> None:
        self.free = [[list(island) for island in host] for host in pool.hosts]

    def take(self, needs: Sequence[int]) -> list[list[int]] | None:
        """Devices for blocks of these sizes in one host, the emptiest that holds them; None where none does."""
        fitting = [(-sum(map(len, host)), i) for i, host in enumerate(self.free) if self._match(host, needs)]
        if not fitting:
            return None
        host = self.free[min(fitting)[1]]
        taken: list[list[int]] = []
        for island, need in zip(self._match(host, needs) or (), needs, strict=True):
            taken.append(host[island][:need])
            del host[island][:need]
        return taken

    @staticmethod
    def _match(host: list[list[int]], needs: Sequence[int]) -> list[int] | None:
        """An island of its own for every need, the tightest first for the largest; None where they do not go in."""
        chosen = [-1] * len(needs)
        for index in sorted(range(len(needs)), key=lambda i: -needs[i]):
            options = [(len(ids), i) for i, ids in enumerate(host) if len(ids) >= needs[index] and i not in chosen]
            if not options:
                return None
            chosen[index] = min(options)[1]
        return chosen


def _assign(
    pools: Sequence[Pool], hosts: list[list[list[Block]]], room: list[_Room]
) -> list[tuple[list[Pattern], list[list[int]]]] | None:
    """Devices for every stage, pipeline by pipeline; None where some blocks find no host."""
    jobs = [(role, i) for role, each in enumerate(hosts) for i in range(len(each))]
    # Those that need most go first; the others then share what is left.
    jobs.sort(key=lambda job: (-sum(_size(b) for b in hosts[job[0]][job[1]]), job))
    taken: dict[tuple[int, int], list[list[int]]] = {}
    for role, i in jobs:
        blocks = hosts[role][i]
        ids = room[blocks[0].pool].take([_size(b) for b in blocks])
        if ids is None:
            return None
        taken[role, i] = ids
    places: list[tuple[list[Pattern], list[list[int]]]] = []
    for role, each in enumerate(hosts):
        stages: list[Pattern] = []
        groups: list[list[int]] = []
        for i, blocks in enumerate(each):
            for block, devices in zip(blocks, taken[role, i], strict=True):
                stages += block.stages
                groups += _aligned([pattern.tensor for pattern in block.stages], devices)
        places.append((stages, groups))
    return places


def _aligned(degrees: Sequence[int], devices: list[int]) -> list[list[int]]:
    """Devices of each stage: the widest first, so that every group begins at a multiple of its size."""
    found: dict[int, list[int]] = {}
    for index in sorted(range(len(degrees)), key=lambda i: (-degrees[i], i)):
        found[index], devices = devices[: degrees[index]], devices[degrees[index] :]
    return [found[index] for index in range(len(degrees))]


def _size(block: Block) -> int:
    return sum(p.tensor for p in block.stages)


def _pack_afresh(pools: Sequence[Pool], hosts: list[list[list[Block]]]) -> list[tuple[list[Pattern], list[list[int]]]]:
    """Every stage into an island with room, by falling degree: always possible, though with more hand-overs."""
    room = [_Room(pool) for pool in pools]
    stages = [(role, p) for role, each in enumerate(hosts) for host in each for block in host for p in block.stages]
    ids: dict[int, list[int]] = {}
    for number in sorted(range(len(stages)), key=lambda n: (-stages[n][1].tensor, n)):
        pattern = stages[number][1]
        taken = room[pattern.pool].take([pattern.tensor])
        if taken is None:
            raise ValueError("placement: more devices than the pools have; counts are of another problem")
        ids[number] = taken[0]
    places = []
    for role in range(len(hosts)):
        numbers = [n for n, (r, _) in enumerate(stages) if r == role]
        inner = sorted(numbers[1:-1], key=lambda n: (stages[n][1].pool, ids[n]))
        numbers = [*numbers[:1], *inner, *numbers[1:][-1:]]
        places.append(([stages[n][1] for n in numbers], [ids[n] for n in numbers]))
    return places


def _pipeline(pools: Sequence[Pool], role: Role, stages: list[Pattern], ids: list[list[int]]) -> LaidOut:
    where = {
        d: (k, h, i)
        for k, p in enumerate(pools)
        for h, host in enumerate(p.hosts)
        for i, g in enumerate(host)
        for d in g
    }
    specs, patterns, layer = [], [], 0
    for index, pattern in enumerate(stages):
        link: Level | None = None
        if index + 1 < len(stages):
            here, there = where[ids[index][0]], where[ids[index + 1][0]]
            link = "island" if here == there else "host" if here[:2] == there[:2] else "pod"
        specs.append(StageSpec(role, (layer, layer + pattern.layers), tuple(ids[index]), pattern.tensor))
        patterns.append(dataclasses.replace(pattern, link=link))
        layer += pattern.layers
    return LaidOut(role, tuple(specs), tuple(patterns))
