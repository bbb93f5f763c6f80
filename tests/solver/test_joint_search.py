"""The joint search: family bounds hold for every placement, plans match brute force, answers are the same twice."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from solver.facts.cluster import Cluster, HostGroup
from solver.plan.bounds import Bounds
from solver.plan.plan import Plan
from solver.search.device_time import device_time_rps
from solver.search.family import Family, parts
from solver.search.family_bounds import family_bounds
from solver.search.placement.layout import level_between
from solver.search.placement.pools import share_pools
from solver.search.placement_search import better_placement
from solver.search.planner import Infeasible, PlanRequest, plan_schedule
from solver.search.proof.boxes import Boxes
from solver.search.proof.limits import Limits
from solver.search.rra_search import limits_of, rra_evaluator
from solver.search.setting import Setting, make_setting
from solver.search.uniform import Placed, micro_batch_counts, return_s, uniform_placements
from solver.simulate.costs import Pipeline, PlacedStage
from tests.conftest import FULL
from tests.solver.planner_cases import random_profile, random_workload, small_cluster, small_spec

LAYERS = 6
DEVICE_BYTES = 8_000_000


def cluster(devices: int) -> Cluster:
    """Devices that hold some dozens of rows, so that every candidate can be looked at."""
    found = small_cluster(per_island=devices)
    return dataclasses.replace(
        found, kinds=tuple(dataclasses.replace(k, memory_bytes=DEVICE_BYTES) for k in found.kinds)
    )


def request(seed: int, ragged: bool, latency_s: float | None = None, **changes: object) -> PlanRequest:
    rng = np.random.default_rng(seed)
    spec = small_spec(LAYERS)
    return PlanRequest(
        spec=spec,
        model_name="toy",
        cluster=cluster(4),
        profiles=(random_profile(rng, spec, ragged=ragged),),
        workload=random_workload(rng, most_output=24),
        bounds=Bounds(latency_s=latency_s),
        policies=("rra",),
        dtype="float32",
        cache_dtype="float32",
        margin=0.0,
        **{"cache_layout": "paged", "compaction": "iteration", "delivery": "iteration", **changes},  # type: ignore[arg-type]
    )


def random_placement(rng: np.random.Generator, setting: Setting) -> Placed:
    """Stages of any degrees and layers on the four devices of one island."""
    free, groups = list(range(4)), []
    most = int(rng.integers(1, 5))
    while free and len(groups) < most:
        tensor = int(rng.choice([t for t in (1, 2, 4) if t <= len(free)]))
        groups.append(tuple(free[:tensor]))
        free = free[tensor:]
    cuts = np.sort(rng.choice(np.arange(1, LAYERS), len(groups) - 1, replace=False))
    counts = np.diff([0, *cuts, LAYERS])
    placed = tuple(
        PlacedStage(
            setting.units["x", len(group)], int(count), i == 0, i == len(groups) - 1,
            None if i == len(groups) - 1 else level_between(setting.cluster, group, groups[i + 1]),
        )
        for i, (group, count) in enumerate(zip(groups, counts, strict=True))
    )  # fmt: skip
    return Placed(1, (), Pipeline(placed, return_s(setting, groups)), ("x",) * len(groups))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_no_placement_beats_the_bounds_of_its_family(ragged: bool, bounded: bool) -> None:
    rng = np.random.default_rng(7)
    looked_at = 0
    for seed in range(24 if FULL else 4):
        layout = "slots" if seed % 2 else "paged"
        setting = make_setting(request(seed, ragged, cache_layout=layout))
        for _ in range(4):
            placed = random_placement(rng, setting)
            stages = len(placed.pipeline.stages)
            m_e, m_d = (int(rng.choice(micro_batch_counts(stages))) for _ in range(2))
            batch = rng.integers(1, 25, 20)
            iterations = rng.integers(1, setting.most_iterations + 1, 20)
            points = rra_evaluator(setting, placed, m_e, m_d)(batch, iterations)
            latency_s = float(np.median(points.latency_s)) if bounded else math.inf
            held = dataclasses.replace(setting, limits=Limits(latency_s))
            kept = (points.throughput_rps > 0) & (points.latency_s <= latency_s)
            whole = Family((1, 4), m_e, m_d)
            share = points.memory_bytes.max(axis=0) / placed.usable_bytes(held)[0]
            for family in chain_of(whole, placed):
                bounds, memory = family_bounds(held, share_pools(setting.pools, 1)[0], family)
                for boxes in (
                    Boxes(batch, batch, iterations, iterations),
                    Boxes(batch, batch + 3, np.maximum(1, iterations - 2), iterations),
                ):
                    bound = bounds.bound(boxes, False)
                    assert (bound.throughput_rps[kept] >= points.throughput_rps[kept] * (1 - 1e-9)).all()
                    assert (bound.latency_s[kept] <= points.latency_s[kept] * (1 + 1e-9)).all()
                    finite = np.isfinite(bound.memory_share)
                    assert (bound.memory_share[finite] <= share[finite] * (1 + 1e-9)).all()
                if setting.conditions.cache_layout == "slots":
                    assert (memory.share(points.max_rows, batch) <= share * (1 + 1e-9)).all()
                looked_at += int(kept.sum())
    assert looked_at > 600


def chain_of(family: Family, placed: Placed) -> list[Family]:
    """The family, that of its parts which holds the placement, and so on down to the smallest."""
    stages = placed.pipeline.stages
    counts = sorted(collections.Counter(stage.tensor for stage in stages).items())
    highest = sum(stage.layers for stage in stages if stage.tensor == counts[-1][0])
    found = [family]
    while True:
        holding = [
            part
            for part in parts(found[-1], (1, 2, 4), 4, LAYERS)
            if part.stages[0] <= len(stages) <= part.stages[1]
            and part.counts in (None, tuple(counts))
            and (part.layers is None or part.layers[0] <= highest <= part.layers[1])
        ]
        if not holding:
            return found
        assert len(holding) == 1, "the parts of a family overlap or leave something out"
        found += holding


def test_parts_of_a_family_hold_every_placement_once() -> None:
    degrees, devices, layers = (1, 2, 4, 8), 12, 9
    smallest, waiting = [], [Family((1, 9), 1, 1)]
    while waiting:
        found = parts(waiting[-1], degrees, devices, layers)
        family = waiting.pop()
        waiting += found
        smallest += [] if found else [family]
    counts = {family.counts for family in smallest}
    every = {
        tuple((tensor, n) for tensor, n in zip(degrees, each, strict=True) if n)
        for each in itertools.product(range(13), repeat=4)
        if 1 <= sum(each) <= 9 and np.dot(each, degrees) <= devices
    }
    assert counts == every
    for chosen in counts:
        ranges = [family.layers for family in smallest if family.counts == chosen]
        assert chosen is not None
        if len(chosen) == 2:
            assert sorted(ranges) == [(k, k) for k in range(chosen[1][1], layers - chosen[0][1] + 1)]
        else:
            assert ranges == [None]


def brute_force(asked: PlanRequest) -> float:
    """Every uniform placement, every pair of micro-batch counts, every candidate of a grid that holds the optimum."""
    setting = make_setting(asked)
    batch, iterations = (
        grid.ravel()
        for grid in np.meshgrid(np.arange(1, setting.most_rows + 1), np.arange(1, setting.most_iterations + 1))
    )
    best = 0.0
    for placed in uniform_placements(setting):
        for m_e, m_d in itertools.product(placed.micro_batches(), repeat=2):
            points = rra_evaluator(setting, placed, m_e, m_d)(batch, iterations)
            kept = limits_of(setting, placed).kept(points)
            best = max(best, placed.copies * float(points.throughput_rps[kept].max(initial=0.0)))
    return best


@pytest.mark.parametrize("seed", range(8 if FULL else 2))
def test_a_plan_is_no_worse_than_all_uniform_placements_and_within_its_bound(seed: int) -> None:
    asked = request(seed, ragged=bool(seed % 2), latency_s=0.08)
    expected = brute_force(asked)
    if expected == 0.0:
        with pytest.raises(Infeasible):
            plan_schedule(asked)
        return
    plan = plan_schedule(asked).plan
    assert plan.prediction is not None
    assert plan.certificate is not None
    assert plan.prediction.throughput_rps >= expected * (1 - 1e-12)
    assert plan.certificate.best_bound_rps >= plan.prediction.throughput_rps
    assert plan.prediction.latency_s <= 0.08


def test_copies_that_leave_a_device_over_are_placed_again_without_it() -> None:
    asked = request(3, ragged=False)
    odd = HostGroup(asked.cluster.groups[0].kind, 1, 1, 1)
    larger = dataclasses.replace(asked.cluster, groups=(*asked.cluster.groups, odd))
    setting = make_setting(dataclasses.replace(asked, cluster=larger))
    tried = [placed for placed in uniform_placements(setting) if placed.copies == 2]
    assert tried
    for placed in tried:
        points = rra_evaluator(setting, placed, 1, 1)(np.array([4]), np.array([4]))
        found = better_placement(setting, placed, points, 1, 1, 5.0)
        if found is not None:
            assert found.copies == 2
            assert sum(len(stage.devices) for stage in found.stages) <= 2
            assert all(device < 4 for stage in found.stages for device in stage.devices)


@pytest.mark.parametrize("ragged", [False, True])
def test_no_placement_beats_the_devices_time(ragged: bool) -> None:
    rng = np.random.default_rng(11)
    closest = 0.0
    for seed in range(10):
        setting = make_setting(request(seed, ragged))
        bound = device_time_rps(setting)
        for placed in (*uniform_placements(setting), *(random_placement(rng, setting) for _ in range(3))):
            batch, iterations = rng.integers(1, 60, 50), rng.integers(1, setting.most_iterations + 1, 50)
            m = max(placed.micro_batches()) if placed.stages else 1
            points = rra_evaluator(setting, placed, m, m)(batch, iterations)
            closest = max(closest, placed.copies * float(points.throughput_rps.max()) / bound)
    assert 0.3 < closest <= 1


def test_a_search_cut_short_still_has_a_bound() -> None:
    asked = dataclasses.replace(request(1, ragged=False), time_limit_s=0.5)
    plan = planned(asked)
    assert plan.certificate is not None
    assert plan.certificate.ended == "time-limited"
    assert math.isfinite(plan.certificate.best_bound_rps)
    assert plan.to_json()


def one_device(seed: int, latency_s: float | None, **changes: object) -> PlanRequest:
    asked = request(seed, ragged=True, latency_s=latency_s, **changes)
    return dataclasses.replace(asked, cluster=cluster(1))


def planned(asked: PlanRequest) -> Plan:
    return plan_schedule(asked).plan


def test_on_one_device_the_proof_is_complete() -> None:
    plan = planned(one_device(3, None))
    assert plan.certificate is not None
    assert plan.certificate.ended == "proven"
    assert plan.certificate.gap == 0
    assert plan.prediction is not None
    assert plan.prediction.throughput_rps == pytest.approx(brute_force(one_device(3, None)), rel=1e-12)


def test_equal_requests_give_equal_bytes() -> None:
    asked = one_device(5, 0.1)
    assert planned(asked).to_json() == planned(asked).to_json()


def test_infeasible_names_the_bound_and_the_nearest_one_works() -> None:
    with pytest.raises(Infeasible, match="latency_bound_s=1e-06 binds") as caught:
        planned(one_device(2, 1e-6))
    nearest = caught.value.nearest_latency_s
    assert nearest is not None
    assert planned(one_device(2, nearest * 1.0001)).prediction is not None
    with pytest.raises(Infeasible):
        planned(one_device(2, nearest * 0.99))


def test_a_margin_keeps_its_distance() -> None:
    free = planned(one_device(4, None)).prediction
    assert free is not None
    bound_s = free.latency_s * 0.9
    careful = planned(dataclasses.replace(one_device(4, bound_s), margin=0.1)).prediction
    assert careful is not None
    assert careful.latency_s <= bound_s / 1.1


def test_memory_in_the_way_says_how_many_devices_would_do() -> None:
    asked = one_device(2, None)
    kinds = tuple(dataclasses.replace(kind, memory_bytes=200_000) for kind in asked.cluster.kinds)
    with pytest.raises(Infeasible, match=r"memory binds: stage 0 needs .* devices"):
        planned(dataclasses.replace(asked, cluster=dataclasses.replace(asked.cluster, kinds=kinds)))


def test_slots_are_counted_as_the_engine_counts_them() -> None:
    plan = planned(one_device(6, None, cache_layout="slots", compaction="phase", delivery="phase"))
    (memory,) = plan.memory
    assert memory.total_bytes <= memory.usable_bytes
    assert memory.cache_bytes >= plan.schedule.max_rows * plan.cache_tokens
    assert math.isclose(
        plan.prediction.throughput_rps,
        brute_force(one_device(6, None, cache_layout="slots", compaction="phase", delivery="phase")),
    )  # type: ignore[union-attr]
