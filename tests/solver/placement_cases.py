"""Random placement problems from a seeded generator, for differential tests of both solvers and the layout."""

from __future__ import annotations

import numpy as np

from solver.facts.cluster import Cluster, DeviceKind, HostGroup, Link
from solver.plan.schedule import Role
from solver.search.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement_problem import Form, Limit, PlacementProblem
from solver.search.pools import Pool, pools_of
from solver.simulate.costs import UnitCosts
from tests.solver.planner_cases import random_unit

MOST_ROWS = 12
Units = dict[tuple[str, int], UnitCosts]


def random_cluster(rng: np.random.Generator, most_devices: int, kinds: int = 2) -> Cluster:
    """One or two kinds, each in one or two shapes of hosts."""
    groups: list[HostGroup] = []
    for kind in "xy"[: int(rng.integers(1, kinds + 1))]:
        group = HostGroup(kind, int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.choice([1, 2, 4, 8])))
        if sum(g.devices for g in groups) + group.devices <= most_devices:
            groups.append(group)
    if not groups:
        groups = [HostGroup("x", 1, 1, int(rng.choice([1, 2, 4])))]
    names = sorted({group.kind for group in groups})
    return Cluster(
        name="random",
        source="seeded",
        kinds=tuple(DeviceKind(name, 8 * 2**30, 1e12, 1e14) for name in names),
        groups=tuple(groups),
        island=Link(2e-6, 3e11),
        host=Link(5e-6, 2.5e10),
        pod=Link(1e-5, 1.2e10),
    )


def random_units(rng: np.random.Generator, cluster: Cluster, ragged: bool) -> Units:
    """Wider groups are about faster, not always; links differ a little, much, or (ragged) without order."""
    largest = {g.kind: max(h.devices_per_island for h in cluster.groups if h.kind == g.kind) for g in cluster.groups}
    return {
        (kind, tensor): random_unit(rng, MOST_ROWS, ragged=ragged, kind=kind, tensor=tensor)
        for kind, most in largest.items()
        for tensor in (1, 2, 4, 8)
        if tensor <= most
    }


def random_problem(
    rng: np.random.Generator,
    *,
    most_devices: int = 16,
    most_layers: int = 10,
    most_stages: int = 6,
    ragged: bool = False,
    roles: tuple[Role, ...] = ("both",),
    limits: bool = True,
    reduce: bool = True,
) -> tuple[PlacementProblem, Cluster, Units, tuple[Pool, ...], tuple[Load, ...]]:
    """A problem with everything that it was made of."""
    cluster = random_cluster(rng, most_devices)
    units, pools = random_units(rng, cluster, ragged), pools_of(cluster)
    layers = int(rng.integers(1, most_layers + 1))
    loads = [Load("encode", float(rng.uniform(1, MOST_ROWS)))]
    loads += [
        Load("decode", float(rng.uniform(0.5, MOST_ROWS)), float(rng.uniform(1, 400)))
        for _ in range(int(rng.integers(1, 3)))
    ]
    # From every layer on one device to hardly one.
    heaviest = max(unit.weights_bytes for unit in units.values())
    memory = heaviest * float(rng.uniform(0.8, 1.3) * layers / rng.integers(1, layers + 1)) + 1e6
    patterns = make_patterns(
        units,
        pools,
        layers,
        loads,
        {role: MemoryNeed(cache_tokens=float(rng.integers(0, 500))) for role in roles},
        dict.fromkeys("xy", memory),
        reduce,
    )
    micro = tuple(int(m) for m in rng.integers(1, 6, len(loads)))
    decodes = len(loads) - 1
    forms = []
    for name in ("period", "latency"):
        pace = (0, *(int(n) for n in rng.integers(0, 12, decodes)))
        drained = (int(rng.integers(1, 4)), *(int(n) for n in rng.integers(0, 2, decodes)))
        forms.append(Form(name, pace, drained, (0, *(int(n) for n in rng.integers(0, 2, decodes)))))
    objective: tuple[Form, ...] = (forms[0],)
    if roles != ("both",):
        cycle = Form("decode", (0, *((3,) * decodes)), (0,) * (1 + decodes), (0,) * (1 + decodes))
        objective = (Form("encode", (0,) * (1 + decodes), (0,) * (1 + decodes), (2, *((0,) * decodes))), cycle)
    limit = int(rng.uniform(0.02, 1.5) * 1e9)
    return (
        PlacementProblem(
            pools=pools,
            patterns=patterns,
            roles=roles,
            layers=layers,
            most_stages=int(rng.integers(len(roles), most_stages + 1)),
            micro_batches=micro,
            path_ns=(0, *(int(n) for n in rng.integers(0, 100_000, decodes))),
            objective=objective,
            limits=(Limit(forms[1], limit),) if limits and rng.uniform() < 0.5 else (),
        ),
        cluster,
        units,
        pools,
        tuple(loads),
    )
