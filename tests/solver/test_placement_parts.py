"""Pools and their shares, patterns against the pipeline's own times, replicas against one search for each number."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from solver.facts.cluster import HostGroup
from solver.plan.schedule import Role
from solver.search.placement.cp_placement import best_placement
from solver.search.placement.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement.placement_forms import WAA_PARTS, rra_period, waa_cycle
from solver.search.placement.placement_problem import form_ns
from solver.search.placement.pools import check_degrees, pools_of, replica_counts, share_pools
from solver.search.placement.replicas import best_replicas
from solver.search.placement.waa_split import computation_share, fixed_split, memory_share
from solver.simulate.costs import Pipeline, PlacedStage
from tests.solver.placement_cases import make_cluster, random_case
from tests.solver.planner_cases import random_unit

LIMIT_S = 60.0
groups = st.builds(
    HostGroup, st.sampled_from("xy"), st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 2, 4, 8])
)


@given(st.lists(groups, min_size=1, max_size=3))
def test_pools_hold_every_device_of_their_kind_once(found: list[HostGroup]) -> None:
    cluster = make_cluster(*found)
    devices = {device.id: device for device in cluster.devices()}
    seen = []
    for pool in pools_of(cluster):
        for host in pool.hosts:
            assert len({devices[d].host for island in host for d in island}) == 1
            for island in host:
                assert {(devices[d].kind, devices[d].island) for d in island} == {
                    (pool.kind, devices[island[0]].island)
                }
                seen += island
    assert sorted(seen) == sorted(devices)


@given(st.lists(groups, min_size=1, max_size=2), st.integers(1, 24))
def test_shares_are_alike_and_use_every_device(found: list[HostGroup], copies: int) -> None:
    pools = pools_of(make_cluster(*found))
    assume(copies in set(replica_counts(pools)))
    shares = share_pools(pools, copies)
    assert len(shares) == copies
    assert len({tuple(pool.shape for pool in share) for share in shares}) == 1
    used = [d for share in shares for pool in share for host in pool.hosts for island in host for d in island]
    assert sorted(used) == list(range(len(used)))


def test_how_48_devices_divide() -> None:
    pools = pools_of(make_cluster(HostGroup("x", 6, 1, 8)))
    assert list(replica_counts(pools)) == [1, 2, 3, 4, 6, 12, 24, 48]
    assert [pool.shape for pool in share_pools(pools, 4)[0]] == [("x", 1, 1, 8), ("x", 1, 1, 4)]
    with pytest.raises(ValueError, match=r"48 x do not divide into 5 equal shares; give one of 1, 2, 3, 4"):
        share_pools(pools, 5)


def test_degrees_that_do_not_pack_are_refused() -> None:
    (pool,) = pools_of(make_cluster(HostGroup("x", 1, 1, 6)))
    check_degrees(pool, [1, 2])
    check_degrees(pool, [1, 3, 6])
    with pytest.raises(ValueError, match=r"do not pack into islands of 6 x \(4 does not divide 6\)"):
        check_degrees(pool, [1, 2, 4])


@given(st.integers(0, 10_000))
def test_patterns_take_the_time_of_their_stage_rounded_down(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit = dataclasses.replace(random_unit(rng, 12, ragged=True), phase_s=0.003)
    pools = pools_of(make_cluster(HostGroup("x", 2, 2, 2)))
    loads = (Load("encode", rng.uniform(0, 12)), Load("decode", rng.uniform(0, 12), rng.uniform(0, 400)), Load("call"))
    need, memory = MemoryNeed(300.0, last_bytes=1e5), 5 * unit.weights_bytes
    found = make_patterns({("x", 1): unit}, pools, 4, loads, {"both": need}, {"x": float(memory)})
    assert {(p.position, p.link) for p in found} >= {("first", "pod"), ("middle", "host"), ("last", None)}
    for p in found:
        first, last = p.position in ("first", "both"), p.position in ("last", "both")
        pipeline = Pipeline((PlacedStage(unit, p.layers, first, last, p.link),))
        seconds = (
            pipeline.encode_s(np.array(loads[0].rows))[0],
            pipeline.decode_s(np.array(loads[1].rows), np.array(loads[1].context))[0],
            0.003,
        )
        for time_ns, exact_s in zip(p.times_ns, seconds, strict=True):
            assert exact_s * 1e9 - 1 <= time_ns <= exact_s * 1e9 + 1e-3
        assert p.memory_bytes <= memory
    assert not any(p.layers * unit.weights_bytes > memory for p in found)


def test_replicas_equal_a_search_for_each_number(full: bool) -> None:
    compared = 0
    for seed in range(80 if full else 8):
        case = random_case(np.random.default_rng([seed, 13]), most_layers=5)
        pools = case.problem.pools
        least = math.inf
        for copies in replica_counts(pools):
            problem = case.on(share_pools(pools, copies)[0])
            value = best_placement(problem, LIMIT_S).value_ns
            least = min(least, math.inf if value is None else value / copies)
        found = best_replicas(pools, lambda copies, share, case=case: case.on(share), LIMIT_S)
        assert found.proven
        assert (math.inf if found.value_ns is None else found.value_ns) == least, seed
        compared += found.value_ns is not None
        if found.value_ns is not None:
            assert found.bound_ns == found.value_ns
            assert len(found.pools) == found.copies
    assert compared > 2


def test_forms_of_the_policies_by_hand() -> None:
    # Two encode micro-batches, three decode micro-batches in two samples, and the call.
    micro, slowest, path = (2, 3, 3, 1), [50, 7, 9, 4], [120, 20, 30, 0]
    period = rra_period([4, 2])
    by_hand = (50 + 120) + 4 * max(21, 20) + 2 * max(27, 30) + min(30 - 9, 2 * 9) + 4
    assert form_ns(period, micro, slowest, path) == by_hand
    encode, decode = waa_cycle(encode_batch=8, decode_rows=64.0, mean_decode=32.0)
    assert form_ns(encode, (1, 3), [50, 7], [120, 20]) == 50 * WAA_PARTS
    assert form_ns(decode, (1, 3), [50, 7], [120, 20]) == 4 * 21 * WAA_PARTS
    with pytest.raises(ValueError, match="last sample stands for 0"):
        rra_period([4, 0])


def test_fixed_splits_of_waa_give_every_device_to_one_side() -> None:
    pools = pools_of(make_cluster(HostGroup("x", 6, 1, 8)))
    degrees = {"x": (1, 2, 4, 8)}
    assert fixed_split(pools, [0.3], degrees) == (("encode", 0, 16), ("decode", 0, 32))
    assert fixed_split(pools, [0.01], degrees) == (("encode", 0, 1), ("decode", 0, 47))
    (single,) = pools_of(make_cluster(HostGroup("x", 1, 1, 1)))
    with pytest.raises(ValueError, match="1 device cannot be split"):
        fixed_split([single], [0.5], degrees)


def test_shares_of_waa_by_hand() -> None:
    unit = random_unit(np.random.default_rng(0), 12, kind="x")
    units = {("x", 1): unit}
    encode, decode = Load("encode", 4.0), Load("decode", 8.0, 100.0)
    once, often = unit.encode_s[4] / 4, 20 * unit.decode_s[1][8] / 8
    assert computation_share(units, "x", encode, decode, 20.0) == pytest.approx(once / (once + often))
    weights = 3 * unit.weights_bytes + unit.embed_bytes + unit.head_bytes
    cache = 3 * 1000 * unit.cache_token_bytes
    needs: dict[Role, MemoryNeed] = {"encode": MemoryNeed(0.0), "decode": MemoryNeed(1000.0)}
    assert memory_share(units, "x", 3, needs) == pytest.approx(weights / (2 * weights + cache))
