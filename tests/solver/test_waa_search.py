"""Search of WAA and disaggregated: equal to looking at every split and candidate; what it says where none fits."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from solver.facts.workload import Ints
from solver.plan.schedule import Policy, Role
from solver.search.outcome import Outcome, Tally
from solver.search.placement.layout import level_between
from solver.search.proof.limits import Limits
from solver.search.setting import Setting
from solver.search.splits import divisions, split_counts
from solver.search.uniform import micro_batch_counts, placed_on
from solver.search.waa_search import PlacedSplit, search_waa
from solver.simulate.waa import Split, evaluate_waa
from tests.conftest import FULL
from tests.solver import planner_cases, search_cases

MOST_ROWS = search_cases.MOST_ROWS


def run(setting: Setting, policy: Policy, seconds: float = 60.0) -> Outcome:
    now = time.monotonic()
    return search_waa(setting, policy, Tally(now, now + seconds), lambda *_: None)


def every_split(setting: Setting, replicated: bool) -> Iterator[tuple[int, Split, int, tuple[float, ...]]]:
    """(copies, split, m_D, capacities) of one island, enumerated by hand."""
    (pool,) = setting.pools
    devices = pool.devices
    for copies in (c for c in range(1, devices + 1) if devices % c == 0):
        size = devices // copies
        for encoding in range(1, size):
            halves: tuple[tuple[Role, int, int], ...] = (("encode", 0, encoding), ("decode", encoding, size - encoding))
            sides = [
                [
                    (replicas, placed_on(setting, groups, pool.kind, role))
                    for replicas in range(1, count + 1 if replicated else 2)
                    for tensor in setting.degrees(pool)
                    if count % (replicas * tensor) == 0 and count // replicas // tensor <= setting.layers
                    for groups in [
                        [tuple(range(first + i, first + i + tensor)) for i in range(0, count // replicas, tensor)]
                    ]
                ]
                for role, first, count in halves
            ]
            for (r_e, encode), (r_d, decode) in itertools.product(*sides):
                split = Split(encode.pipeline, decode.pipeline, setting.cluster.island, r_e, r_d)
                capacity = encode.usable_bytes(setting) + decode.usable_bytes(setting)
                for m in micro_batch_counts(len(decode.stages)):
                    yield copies, split, m, capacity


def grid_rps(setting: Setting, values: Ints, replicated: bool, above: float = 0.0) -> float:
    """The best of a grid over all splits that keeps the limits and exceeds `above`; 0 where none does.

    Bytes are counted in full for those alone that would be the best so far: counted plainly they are fewer.
    """
    batch, rows = (g.ravel() for g in np.meshgrid(values, values))
    best = 0.0
    for copies, split, m, capacity in every_split(setting, replicated):
        limits = dataclasses.replace(setting.limits, memory_bytes=capacity)
        plain = evaluate_waa(split, setting.lengths, setting.conditions, batch, rows, m, padding=setting.padding)
        hope = limits.kept(plain) & (copies * plain.throughput_rps > max(best, above))
        if hope.any():
            points = evaluate_waa(
                split, setting.lengths, setting.conditions, batch[hope], rows[hope], m, memory=setting.memory,
                padding=setting.padding,
            )  # fmt: skip
            best = max(best, copies * float(points.throughput_rps[limits.kept(points)].max(initial=0.0)))
    return best


@pytest.mark.parametrize("padded", [False, True])
def test_equals_looking_at_everything(padded: bool) -> None:
    found_any = infeasible = 0
    for seed in range(60) if FULL else range(3, 6):
        setting = search_cases.small_setting(seed, padded=padded)
        assert setting.most_rows == MOST_ROWS
        policies: tuple[Policy, ...] = ("waa", "disaggregated") if seed % 2 else ("waa",)
        for policy in policies:
            best = grid_rps(setting, np.arange(1, MOST_ROWS + 1), policy == "disaggregated")
            outcome = run(setting, policy)
            if outcome.best is None:
                assert best == 0.0, f"seed {seed} {policy}"
                infeasible += 1
            else:
                assert outcome.best.rps == pytest.approx(best, rel=1e-9), f"seed {seed} {policy}"
                assert outcome.bound_rps == pytest.approx(best, rel=1e-9)
                check_best(setting, outcome)
                found_any += 1
    assert found_any
    assert infeasible


def check_best(setting: Setting, outcome: Outcome) -> None:
    """Limits are kept, and the placement, evaluated afresh, is what was predicted."""
    best = outcome.best
    assert best is not None
    placed = best.placed
    assert isinstance(placed, PlacedSplit)
    assert limits_of(setting, placed).kept(best.points).all()
    assert len(best.points.memory_bytes) == len(placed.stages) == len(placed.kinds)
    roles = [stage.role for stage in placed.stages]
    assert roles == ["encode"] * len(placed.split.encode.stages) + ["decode"] * len(placed.split.decode.stages)
    for role in ("encode", "decode"):
        layers = [stage.layers for stage in placed.stages if stage.role == role]
        assert layers[0][0] == 0
        assert layers[-1][1] == setting.layers
    used = [device for stage in placed.stages for device in stage.devices]
    assert len(set(used)) == len(used)


def limits_of(setting: Setting, placed: PlacedSplit) -> Limits:
    return dataclasses.replace(setting.limits, memory_bytes=placed.usable_bytes(setting))


def test_rules_split_no_better_than_the_free_search() -> None:
    for seed in range(4):
        setting = search_cases.small_setting(seed, loose=True)
        free = run(setting, "waa").best
        assert free is not None
        ruled_policies: tuple[Policy, ...] = ("waa-c", "waa-m")
        for policy in ruled_policies:
            ruled = run(setting, policy).best
            assert ruled is None or ruled.rps <= free.rps * (1 + 1e-9)


def test_without_a_plan_the_nearest_is_told() -> None:
    setting = search_cases.small_setting(0, loose=True)
    tight = dataclasses.replace(setting, limits=dataclasses.replace(setting.limits, latency_s=1e-6))
    outcome = run(tight, "waa")
    assert outcome.best is None
    assert outcome.bound_rps == 0.0
    assert outcome.nearest is not None
    assert float(outcome.nearest.points.latency_s[0]) > 1e-6


def test_one_device_is_refused_with_a_reason() -> None:
    alone = search_cases.small_setting(0, cluster=planner_cases.small_cluster(per_island=1))
    outcome = run(alone, "waa")
    assert outcome.best is None
    assert "2 alike" in outcome.reason


def test_without_time_nothing_is_claimed() -> None:
    outcome = run(search_cases.small_setting(0, loose=True), "waa", seconds=0.0)
    assert outcome.best is None
    assert outcome.bound_rps == math.inf


def test_sides_use_every_device_in_groups_inside_islands() -> None:
    cluster = planner_cases.small_cluster(hosts=2, islands=2, per_island=2)
    setting = search_cases.small_setting(1, cluster=cluster)
    places = {device.id: device for device in cluster.devices()}
    seen = 0
    for division in divisions(setting, "disaggregated"):
        for side in (*division.encode, *division.decode):
            assert all(len({places[d].island for d in group}) == 1 for group in side.groups)
        for encode, decode in itertools.product(division.encode, division.decode):
            counts = [side.replicas * sum(map(len, side.groups)) for side in (encode, decode)]
            assert sum(counts) * division.copies == len(places)
            ends = [d for group in encode.groups for d in group], [d for group in decode.groups for d in group]
            # The link is that of the farthest of all replicas' devices, so no nearer than that of the first ones'.
            order = ("island", "host", "pod")
            assert order.index(level_between(cluster, *ends)) <= order.index(division.level)
            seen += 1
    assert seen > 20


def test_split_counts() -> None:
    assert split_counts(4, (1, 2, 4)) == (1, 2, 3)
    assert split_counts(8, (2, 4)) == (2, 4, 6)
    many = split_counts(128, (1, 2, 4, 8))
    assert 12 <= len(many) <= 15
    assert all(count % 8 == 0 and 0 < count < 128 for count in many)


def test_no_grid_beats_it_on_a_shipped_profile() -> None:
    setting = search_cases.opt_setting(latency_s=5.0)
    outcome = run(setting, "waa")
    assert outcome.best is not None
    assert outcome.bound_rps == pytest.approx(outcome.best.rps, rel=1e-9)
    check_best(setting, outcome)
    values = np.unique(np.geomspace(1, setting.most_rows, 30).astype(np.int64))
    near = grid_rps(setting, values, replicated=False, above=0.9 * outcome.best.rps)
    assert 0.9 * outcome.best.rps < near <= outcome.best.rps * (1 + 1e-9)
