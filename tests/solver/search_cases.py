"""Settings for tests of searches: random small ones whose memory binds, and one of a shipped profile."""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts import presets
from solver.facts.cluster import Cluster
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.profile_file import find_profile
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds
from solver.search.request import PlanRequest
from solver.search.setting import Setting, make_setting
from solver.simulate.costs import UnitCosts
from tests.solver import planner_cases

MOST_ROWS = 32


def small_setting(seed: int, *, loose: bool = False, cluster: Cluster | None = None, padded: bool = False) -> Setting:
    """A toy model on four devices of one island; costs reach to 32 rows. `loose`: no bound on times, much memory."""
    rng = np.random.default_rng(seed)
    cluster = cluster or planner_cases.small_cluster()
    memory_bytes = int(rng.uniform(2.5e6, 8e6)) if not loose else int(8e6)
    kinds = tuple(dataclasses.replace(kind, memory_bytes=memory_bytes) for kind in cluster.kinds)
    spec = planner_cases.small_spec()
    profile = planner_cases.random_profile(rng, spec, ragged=rng.random() < 0.6, padded=padded)
    bounds = Bounds(
        latency_s=_draw(rng, 0.01, 0.3, loose),
        ttft_s=_draw(rng, 0.005, 0.1, loose),
        tpot_s=_draw(rng, 0.0005, 0.01, loose),
        latency_percentile=float(rng.choice([50, 90, 99])),
    )
    request = PlanRequest(
        spec,
        "toy",
        dataclasses.replace(cluster, kinds=kinds),
        (profile,),
        planner_cases.random_workload(rng, pairs=10),
        bounds,
        dtype="float32",
        cache_dtype="float32",
        cache_layout="paged" if rng.random() < 0.5 else "slots",
        compaction="iteration",
        delivery="iteration",
        margin=0.0,
    )
    setting = make_setting(request)
    return dataclasses.replace(setting, units={key: _shortened(unit) for key, unit in setting.units.items()})


def _shortened(unit: UnitCosts) -> UnitCosts:
    """Tabulated for few rows, so that every candidate can be looked at."""
    found = {}
    for field in dataclasses.fields(unit):
        value = getattr(unit, field.name)
        if field.name.startswith("hand_over"):
            value = {level: column[: MOST_ROWS + 1] for level, column in value.items()}
        elif field.name != "contexts" and isinstance(value, np.ndarray):
            value = value[..., : MOST_ROWS + 1]
        found[field.name] = value
    return UnitCosts(**found)


def _draw(rng: np.random.Generator, low: float, high: float, loose: bool) -> float | None:
    value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return value if rng.random() < 0.5 and not loose else None


def opt_setting(latency_s: float | None) -> Setting:
    """OPT-13B on four A40, the paper's task S."""
    spec = read_model_spec(presets.find("models", "opt-13b"))
    cluster = load_cluster("paper-a40-48", 4)
    profile = find_profile(spec, "a40-48g", "bfloat16")
    request = PlanRequest(
        spec,
        "opt-13b",
        cluster,
        (profile,),
        load_workload("paper-s"),
        Bounds(latency_s=latency_s),
        cache_layout="paged",
        compaction="iteration",
        delivery="iteration",
        margin=0.0,
    )
    return make_setting(request)
