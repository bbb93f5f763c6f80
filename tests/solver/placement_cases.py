"""Random placement problems from a seeded generator, for differential tests of both solvers and the layout."""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.cluster import LEVELS, Cluster, DeviceKind, HostGroup, Link
from solver.plan.schedule import Role
from solver.search.placement.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement.placement_problem import Form, Limit, PlacementProblem
from solver.search.placement.pools import Pool, pools_of
from solver.simulate.costs import UnitCosts
from tests.solver.planner_cases import random_unit

MOST_ROWS = 12
Units = dict[tuple[str, int], UnitCosts]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem with everything that it was made of."""

    problem: PlacementProblem
    cluster: Cluster
    units: Units
    loads: tuple[Load, ...]
    need: MemoryNeed
    memory_bytes: float

    def on(self, pools: tuple[Pool, ...], reduce: bool = True) -> PlacementProblem:
        """The same problem on other pools."""
        needs = dict.fromkeys(self.problem.roles, self.need)
        memory = dict.fromkeys("xy", self.memory_bytes)
        patterns = make_patterns(self.units, pools, self.problem.layers, self.loads, needs, memory, reduce)
        return dataclasses.replace(self.problem, pools=pools, patterns=patterns)


def make_cluster(*groups: HostGroup) -> Cluster:
    return Cluster(
        name="made up",
        source="made up",
        kinds=tuple(DeviceKind(name, 8 * 2**30, 1e12, 1e14) for name in sorted({group.kind for group in groups})),
        groups=groups,
        island=Link(2e-6, 3e11),
        host=Link(5e-6, 2.5e10),
        pod=Link(1e-5, 1.2e10),
    )


def random_cluster(rng: np.random.Generator, most_devices: int) -> Cluster:
    """One or two kinds; now and then the same kind in hosts of two shapes."""
    groups: list[HostGroup] = []
    for kind in ("x", "y", "x")[: int(rng.integers(1, 4))]:
        group = HostGroup(kind, int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.choice([1, 2, 4, 8])))
        if sum(g.devices for g in groups) + group.devices <= most_devices:
            groups.append(group)
    return make_cluster(*(groups or [HostGroup("x", 1, 1, int(rng.choice([1, 2, 4])))]))


def random_units(rng: np.random.Generator, cluster: Cluster, ragged: bool) -> Units:
    """Ragged: links in no order, times that jump. Else farther links take at least as long."""
    largest = {g.kind: max(h.devices_per_island for h in cluster.groups if h.kind == g.kind) for g in cluster.groups}
    units = {}
    for kind, most in largest.items():
        for tensor in (each for each in (1, 2, 4, 8) if each <= most):
            unit = random_unit(rng, MOST_ROWS, ragged=ragged, kind=kind, tensor=tensor)
            if not ragged:
                unit = dataclasses.replace(
                    unit,
                    hand_over_encode_s=_rising(unit.hand_over_encode_s),
                    hand_over_decode_s=_rising(unit.hand_over_decode_s),
                )
            units[kind, tensor] = unit
    return units


def _rising(columns: dict) -> dict:
    rising = np.maximum.accumulate(np.stack([columns[level] for level in LEVELS]))
    return dict(zip(LEVELS, rising, strict=True))


def random_case(
    rng: np.random.Generator,
    *,
    most_devices: int = 12,
    most_layers: int = 8,
    most_stages: int = 5,
    ragged: bool = False,
    roles: tuple[Role, ...] = ("both",),
) -> Case:
    """Every other one has a limit; memory is from plenty to hardly enough."""
    cluster = random_cluster(rng, most_devices)
    units, layers = random_units(rng, cluster, ragged), int(rng.integers(1, most_layers + 1))
    decodes = int(rng.integers(1, 3))
    loads = (
        Load("encode", float(rng.uniform(1, MOST_ROWS))),
        *(Load("decode", float(rng.uniform(0.5, MOST_ROWS)), float(rng.uniform(1, 400))) for _ in range(decodes)),
    )
    heaviest = max(unit.weights_bytes for unit in units.values())
    memory = heaviest * float(rng.uniform(0.8, 1.3) * layers / rng.integers(1, layers + 1)) + 1e6

    def some(most: int, least: int = 0) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(least, most, decodes))

    def form(name: str) -> Form:
        return Form(name, (0, *some(12)), (int(rng.integers(1, 4)), *some(2)), (0, *some(2)))

    objective: tuple[Form, ...] = (form("period"),)
    if roles != ("both",):
        zeros = (0,) * (1 + decodes)
        objective = (Form("encode", zeros, zeros, (2, *zeros[1:])), Form("decode", (0, *some(9, 1)), zeros, zeros))
    limit = Limit(form("latency"), int(rng.uniform(0.02, 1.5) * 1e9))
    problem = PlacementProblem(
        pools=(),
        patterns=(),
        roles=roles,
        layers=layers,
        most_stages=int(rng.integers(len(roles), most_stages + 1)),
        micro_batches=tuple(int(m) for m in rng.integers(1, 6, len(loads))),
        path_ns=(0, *(int(n) for n in rng.integers(0, 100_000, decodes))),
        objective=objective,
        limits=(limit,) if rng.uniform() < 0.5 else (),
        role_devices=(("encode", 0, int(rng.integers(1, 5))),) if "encode" in roles and rng.uniform() < 0.5 else (),
    )
    need = MemoryNeed(cache_tokens=float(rng.integers(0, 500)), stage_bytes=float(rng.integers(0, 10_000)))
    case = Case(problem, cluster, units, loads, need, memory)
    return dataclasses.replace(case, problem=case.on(pools_of(cluster)))
