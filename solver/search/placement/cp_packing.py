"""What the cluster's tree allows, in whole-number constraints without positions or hosts.

The stages of one island that follow one another are a block. It ends in its anchor: the stage that hands over to
another island, or the last stage. Degrees divide one another, so beside an anchor of degree a an island of I devices
holds I/s - ceil(a/s) aligned groups of s devices, for every degree s; all inner stages of at least s devices must fit
into these. With the first stage's share of the block that it stands in, that is also sufficient (fill by falling
degree), so the numbers of hand-overs over links of hosts and of the pod are exact. `placement.layout` does it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

from ortools.sat.python import cp_model

from solver.facts.cluster import Level
from solver.plan.schedule import Role
from solver.search.placement.placement_problem import Pattern, PlacementProblem, Position

# Links of the stage that ends a block; None: of the last stage.
_ANCHOR_LINKS = ("host", "pod", None)
_ANY = ("first", "middle", "last", "both")
_LINKS = ("island", "host", "pod", None)


@dataclasses.dataclass(frozen=True)
class Group:
    """Patterns that differ in their layers alone."""

    role: Role
    pool: int
    tensor: int
    position: Position
    link: Level | None


class Groups:
    """Variables: how many stages each group has."""

    def __init__(
        self,
        model: cp_model.CpModel,
        patterns: Mapping[int, Pattern],
        uses: Mapping[int, cp_model.IntVar],
        most_stages: int,
    ) -> None:
        self.patterns, self.uses = patterns, uses
        members: dict[Group, list[int]] = {}
        for index, p in patterns.items():
            members.setdefault(Group(p.role, p.pool, p.tensor, p.position, p.link), []).append(index)
        self.count: dict[Group, cp_model.IntVar] = {}
        for group, indices in members.items():
            self.count[group] = model.new_int_var(0, most_stages, f"c{len(self.count)}")
            model.add(self.count[group] == cp_model.LinearExpr.sum([uses[index] for index in indices]))

    def where(
        self,
        role: Role,
        pool: int | None = None,
        positions: Collection[str] = _ANY,
        links: Collection[str | None] = _LINKS,
        tensor: int | None = None,
    ) -> Iterator[tuple[Group, cp_model.IntVar]]:
        for group, count in self.count.items():
            alike = group.role == role and pool in (None, group.pool) and tensor in (None, group.tensor)
            if alike and group.position in positions and group.link in links:
                yield group, count

    def total(
        self,
        role: Role,
        pool: int | None = None,
        positions: Collection[str] = _ANY,
        links: Collection[str | None] = _LINKS,
        tensor: int | None = None,
    ) -> cp_model.LinearExpr:
        """How many stages are such."""
        return cp_model.LinearExpr.sum([count for _, count in self.where(role, pool, positions, links, tensor)])


def add_packing(problem: PlacementProblem, model: cp_model.CpModel, groups: Groups) -> dict[Role, cp_model.IntVar]:
    """Adds what makes counts a placement; returns, per role, whether its pipeline is a single stage."""
    alone = {role: model.new_bool_var(f"alone {role}") for role in problem.roles}
    for role in problem.roles:
        chosen = [index for index, p in groups.patterns.items() if p.role == role]
        layers = [groups.patterns[index].layers for index in chosen]
        model.add(cp_model.LinearExpr.weighted_sum([groups.uses[index] for index in chosen], layers) == problem.layers)
        model.add(groups.total(role, positions=("first",)) == 1 - alone[role])
        model.add(groups.total(role, positions=("last",)) == 1 - alone[role])
        model.add(groups.total(role, positions=("both",)) == alone[role])
    model.add(sum(groups.total(role) for role in problem.roles) <= problem.most_stages)
    for role, pool, devices in problem.role_devices:
        its = [(group.tensor, count) for group, count in groups.where(role, pool)]
        model.add(_weighted(its) <= devices)
    for pool, shape in enumerate(problem.pools):
        here = [(group, count) for role in problem.roles for group, count in groups.where(role, pool)]
        tensors = [group.tensor for group, _ in here]
        model.add(cp_model.LinearExpr.weighted_sum([count for _, count in here], tensors) <= shape.devices)
        packed = [_pack(problem, model, groups, role, pool) for role in problem.roles]
        # Blocks of two pipelines may share an island or a host; so may a pipeline's first and last.
        others = len(packed) - 1
        model.add(sum(each.blocks - each.shared_island for each in packed) <= shape.islands + others)
        model.add(sum(each.host_blocks - each.shared_host for each in packed) <= len(shape.hosts) + others)
    return alone


@dataclasses.dataclass(frozen=True)
class _Packed:
    """Blocks of one pipeline in one pool.

    Attributes:
      blocks: islands that its stages stand in one after another, one counted twice if left and entered again.
      host_blocks: hosts alike.
      shared_island, shared_host: whether first and last block may be in one.
    """

    blocks: cp_model.LinearExpr
    host_blocks: cp_model.LinearExpr
    shared_island: cp_model.IntVar
    shared_host: cp_model.IntVar


def _pack(problem: PlacementProblem, model: cp_model.CpModel, groups: Groups, role: Role, pool: int) -> _Packed:
    size = problem.pools[pool].island_size
    degrees = sorted({group.tensor for group, _ in groups.where(role, pool)})
    beside = _first_beside(problem, model, groups, role, pool, degrees)
    # A first stage that leaves its island has the block to itself.
    anchors = list(groups.where(role, pool, ("middle", "last", "both"), _ANCHOR_LINKS))
    for s in degrees:
        inner = [(g.tensor, c) for g, c in groups.where(role, pool, ("middle",), ("island",)) if g.tensor >= s]
        taken = [(s * (math.ceil((f + a) / s) - math.ceil(a / s)), c) for (f, a, _), c in beside.items()]
        room = [(size - s * math.ceil(g.tensor / s), c) for g, c in anchors]
        model.add(_weighted([*inner, *taken]) <= _weighted(room))
    by_host = groups.total(role, pool, links=("host",))
    by_pod = groups.total(role, pool, links=("pod",))
    first = groups.total(role, pool, ("first", "both"))
    last = groups.total(role, pool, ("last", "both"))
    # A host holds further islands before the one by which it is left, unless that is the first stage's.
    opening = groups.total(role, pool, ("first",), ("pod",)) + sum(c for (_, _, x), c in beside.items() if x == "pod")
    model.add(by_host <= (problem.pools[pool].host_islands - 1) * (by_pod + last - opening))
    # Where several hosts follow one another, the first stage's is left for another.
    model.add(groups.total(role, links=("pod",)) <= problem.most_stages * (by_pod + 1 - first))
    shared = []
    leaving: tuple[tuple[str, ...], ...] = (("host", "pod"), ("pod",))
    for links in leaving:
        # Whoever comes back to where it began was in two more places.
        shared.append(model.new_bool_var(f"shared {role} {pool} {len(links)}"))
        model.add(shared[-1] <= first)
        model.add(shared[-1] <= last)
        model.add(2 * shared[-1] <= groups.total(role, links=links))
    return _Packed(by_pod + by_host + last, by_pod + last, *shared)


def _weighted(terms: Collection[tuple[int, cp_model.IntVar]]) -> cp_model.LinearExpr:
    return cp_model.LinearExpr.weighted_sum([variable for _, variable in terms], [weight for weight, _ in terms])


def _first_beside(
    problem: PlacementProblem, model: cp_model.CpModel, groups: Groups, role: Role, pool: int, degrees: list[int]
) -> dict[tuple[int, int, str | None], cp_model.IntVar]:
    """(degree of a first stage that stays in its island, degree and link of its block's anchor) -> whether so."""
    found: dict[tuple[int, int, str | None], cp_model.IntVar] = {}
    leaving = groups.total(role, links=("host", "pod"))
    for first in degrees:
        here = []
        for anchor in (each for each in degrees if first + each <= problem.pools[pool].island_size):
            for link in _ANCHOR_LINKS:
                chosen = model.new_bool_var(f"beside {role} {pool} {first} {anchor} {link}")
                position: Position = "last" if link is None else "middle"
                model.add(chosen <= groups.total(role, pool, (position,), (link,), anchor))
                if link is None:  # first and last stage in one block: nothing leaves it
                    model.add(leaving <= problem.most_stages * (1 - chosen))
                found[first, anchor, link] = chosen
                here.append(chosen)
        model.add(cp_model.LinearExpr.sum(here) == groups.total(role, pool, ("first",), ("island",), first))
    return found
