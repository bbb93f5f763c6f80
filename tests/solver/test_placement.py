"""Placement: two solvers that share nothing agree, and so does brute force over devices; the layout keeps the value."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.facts.cluster import HostGroup, Level
from solver.plan.schedule import Role
from solver.search.placement.bisect_placement import bisect_placement
from solver.search.placement.check_placement import faults_of
from solver.search.placement.cp_placement import best_placement
from solver.search.placement.layout import lay_out, level_between, pipeline_of
from solver.search.placement.patterns import Load
from solver.search.placement.placement_bounds import least_value_ns
from solver.search.placement.placement_problem import Form, Pattern, PlacementProblem, form_ns, value_ns
from solver.search.placement.pools import pools_of
from solver.search.placement.start_placement import start_placement
from solver.simulate.costs import Pipeline, PlacedStage
from tests.solver.placement_cases import Case, make_cluster, random_case

LIMIT_S = 60.0


def check_layout(case: Case, counts: dict[int, int]) -> None:
    """Devices once each, groups inside islands, all layers, true links, and the value that was counted on."""
    problem, laid_out = case.problem, lay_out(case.problem, counts)
    used = [device for each in laid_out for stage in each.stages for device in stage.devices]
    assert len(set(used)) == len(used)
    devices = case.cluster.devices()
    for each in laid_out:
        edges = [0, *(stage.layers[1] for stage in each.stages)]
        assert [stage.layers for stage in each.stages] == list(itertools.pairwise(edges))
        assert edges[-1] == problem.layers
        assert (each.patterns[0].position, each.patterns[-1].position) in {("first", "last"), ("both", "both")}
        for stage, pattern in zip(each.stages, each.patterns, strict=True):
            assert len({devices[d].island for d in stage.devices}) == 1
            assert {devices[d].kind for d in stage.devices} == {problem.pools[pattern.pool].kind}
        for (one, pattern), (two, _) in itertools.pairwise(zip(each.stages, each.patterns, strict=True)):
            assert pattern.link == level_between(case.cluster, one.devices, two.devices)
        exact = objective(case, pipeline_of(each, problem.pools, case.units))
        assert exact is not None
        # Times are rounded down: at most a nanosecond per stage and factor.
        assert 0 <= exact - value_ns(problem, counts) + 1 < 1000


def _seconds(pipeline: Pipeline, load: Load) -> np.ndarray:
    rows, context = np.array(load.rows), np.array(load.context)
    return pipeline.encode_s(rows) if load.phase == "encode" else pipeline.decode_s(rows, context)


@pytest.mark.parametrize("ragged", [False, True])
def test_cp_sat_equals_the_second_solver_and_its_layout_holds(full: bool, ragged: bool) -> None:
    infeasible = 0
    for seed in range(600 if full else 30):
        rng = np.random.default_rng([seed, ragged])
        case = random_case(rng, ragged=ragged)
        problem = case.problem
        second, hint = bisect_placement(problem), start_placement(problem)
        for found in (best_placement(problem, LIMIT_S), best_placement(problem, LIMIT_S, hint)):
            assert found.proven, seed
            assert found.value_ns == second.value_ns, seed
            if found.value_ns is None:
                continue
            assert found.bound_ns == found.value_ns == value_ns(problem, found.counts), seed
            assert least_value_ns(problem) <= found.value_ns, seed
            assert not faults_of(problem, found.counts, found.value_ns), seed
            if not ragged:  # a farther link that is quicker than a nearer one is charged, but cannot be had
                check_layout(case, dict(found.counts))
        infeasible += second.value_ns is None
    assert infeasible > 2


def test_encode_and_decode_apart_equal_the_second_solver(full: bool) -> None:
    roles: tuple[Role, ...] = ("encode", "decode")
    found_some = 0
    for seed in range(200 if full else 12):
        case = random_case(np.random.default_rng([seed, 7]), most_devices=10, most_layers=4, roles=roles)
        found, second = best_placement(case.problem, LIMIT_S), bisect_placement(case.problem)
        assert found.value_ns == second.value_ns, seed
        assert best_placement(case.problem, LIMIT_S, start_placement(case.problem)).value_ns == second.value_ns, seed
        if found.counts:
            found_some += 1
            laid_out = lay_out(case.problem, found.counts)
            used = [device for each in laid_out for stage in each.stages for device in stage.devices]
            assert len(set(used)) == len(used)
            assert [each.role for each in laid_out] == ["encode", "decode"]
    assert found_some > 3


def every_pipeline(case: Case, islands: list[list[int]]) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """All ways to cut the layers and put each part on devices of one island: (layers, devices) per stage."""
    devices = case.cluster.devices()

    def walk(left: int, free: list[list[int]], stages: list) -> Iterator[list]:
        if left == 0:
            yield stages
            return
        if len(stages) == case.problem.most_stages:
            return
        for i, island in enumerate(free):
            for tensor in (t for t in (1, 2, 4, 8) if t <= len(island)):
                if (devices[island[0]].kind, tensor) not in case.units:
                    continue
                rest = [island[tensor:] if k == i else each for k, each in enumerate(free)]
                for layers in range(1, left + 1):
                    yield from walk(left - layers, rest, [*stages, (layers, tuple(island[:tensor]))])

    yield from walk(case.problem.layers, islands, [])


def brute_force(case: Case) -> float | None:
    """The least objective in nanoseconds over all pipelines on devices, from the costs alone."""
    devices, best = case.cluster.devices(), None
    by_island: dict[int, list[int]] = {}
    for device in devices:
        by_island.setdefault(device.island, []).append(device.id)
    for stages in every_pipeline(case, list(by_island.values())):
        placed = []
        for k, (layers, ids) in enumerate(stages):
            unit = case.units[devices[ids[0]].kind, len(ids)]
            link: Level | None = None
            if k + 1 < len(stages):
                link = level_between(case.cluster, ids, stages[k + 1][1])
            placed.append(PlacedStage(unit, layers, k == 0, k + 1 == len(stages), link))
            held = layers * (unit.weights_bytes + case.need.cache_tokens * unit.cache_token_bytes)
            held += case.need.stage_bytes + (unit.embed_bytes if k == 0 else 0)
            if held + (unit.head_bytes if k + 1 == len(stages) else 0) > case.memory_bytes:
                break
        else:
            value = objective(case, Pipeline(tuple(placed)))
            if value is not None and (best is None or value < best):
                best = value
    return best


def objective(case: Case, pipeline: Pipeline) -> float | None:
    """In nanoseconds, from the costs of a pipeline; None beyond a limit."""

    def form(form: Form) -> float:
        total = float(form.constant_ns)
        for i, load in enumerate(case.loads):
            x, m = _seconds(pipeline, load) * 1e9, case.problem.micro_batches[i]
            path = x.sum() + (case.problem.path_ns[i] if len(x) > 1 else 0)
            total += form.pace[i] * max(m * x.max(), path) + form.drained[i] * ((m - 1) * x.max() + path)
            total += form.bottleneck[i] * x.max()
        return total

    if any(form(limit.form) > limit.most_ns + 100 for limit in case.problem.limits):
        return None
    return max(form(each) for each in case.problem.objective)


def test_cp_sat_equals_brute_force_over_devices(full: bool) -> None:
    compared = 0
    for seed in range(300 if full else 25):
        case = random_case(np.random.default_rng([seed, 3]), most_devices=6, most_layers=4, most_stages=4)
        found, least = best_placement(case.problem, LIMIT_S), brute_force(case)
        assert (found.value_ns is None) == (least is None), seed
        if found.value_ns is not None and least is not None:
            compared += 1
            # Times are rounded down: at most a nanosecond per stage and factor.
            assert 0 <= least - found.value_ns + 1 < 1000, seed
    assert compared > 8


def hand_made(first: int, middle: int, last: int, hosts: int) -> tuple[PlacementProblem, int]:
    """One layer a stage, three stages of given degrees; every hand-over to another host costs 1 ns, others nothing."""
    pools = pools_of(make_cluster(HostGroup("x", hosts, 1, 8)))
    patterns = [Pattern("both", 0, last, 1, "last", None, (10,), 0)]
    for link, cost in (("island", 0), ("pod", 1)):
        patterns.append(Pattern("both", 0, first, 1, "first", link, (10 + cost,), 0))  # type: ignore[arg-type]
        patterns.append(Pattern("both", 0, middle, 1, "middle", link, (10 + cost,), 0))  # type: ignore[arg-type]
    return PlacementProblem(pools, tuple(patterns), ("both",), 3, 3, (1,), (0,), (Form("path", (0,), (1,), (0,)),)), 30


@pytest.mark.parametrize(
    ("degrees", "hosts", "crossings"),
    [((4, 8, 4), 2, 2), ((4, 4, 8), 2, 1), ((2, 4, 2), 1, 0), ((8, 8, 8), 3, 2), ((4, 4, 4), 2, 1), ((1, 1, 8), 2, 1)],
)
def test_hosts_are_crossed_as_often_as_the_packing_forces(
    degrees: tuple[int, int, int], hosts: int, crossings: int
) -> None:
    problem, base = hand_made(*degrees, hosts)
    assert best_placement(problem, LIMIT_S).value_ns == base + crossings
    assert bisect_placement(problem).value_ns == base + crossings


def test_few_compiled_shapes(full: bool) -> None:
    """Against the best over every set of so many shapes."""
    compared = 0
    for seed in range(60 if full else 6):
        case = random_case(np.random.default_rng([seed, 5]), most_devices=6, most_layers=5, most_stages=4)
        problem = case.on(case.problem.pools, reduce=False)
        shapes = sorted({(p.pool, p.tensor, p.layers) for p in problem.patterns})
        least = math.inf
        for chosen in itertools.combinations(shapes, min(2, len(shapes))):
            kept = tuple(p for p in problem.patterns if (p.pool, p.tensor, p.layers) in chosen)
            value = bisect_placement(dataclasses.replace(problem, patterns=kept)).value_ns
            least = min(least, math.inf if value is None else value)
        found = best_placement(dataclasses.replace(problem, most_shapes=2), LIMIT_S)
        assert (math.inf if found.value_ns is None else found.value_ns) == least, seed
        compared += found.value_ns is not None
    assert compared > 1


def test_out_of_time_returns_the_hint_and_an_honest_bound() -> None:
    case = next(c for seed in range(99) if start_placement((c := random_case(np.random.default_rng(seed))).problem))
    hint = start_placement(case.problem)
    assert hint is not None
    found = best_placement(case.problem, 1e-9, hint)
    best = best_placement(case.problem, LIMIT_S)
    assert found.value_ns is not None
    assert best.value_ns is not None
    assert found.value_ns <= value_ns(case.problem, hint)
    assert found.bound_ns is None or found.bound_ns <= best.value_ns
    assert best.value_ns <= found.value_ns


def test_nothing_beats_the_best_and_the_same_comes_twice() -> None:
    for seed in range(5):
        problem = random_case(np.random.default_rng([seed, 11])).problem
        found = best_placement(problem, LIMIT_S)
        assert best_placement(problem, LIMIT_S).counts == found.counts
        if found.value_ns is not None:
            none = best_placement(problem, LIMIT_S, beat_ns=found.value_ns - 1)
            assert (none.value_ns, none.bound_ns, none.proven) == (None, found.value_ns, True)


@given(st.integers(1, 9), st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_the_last_iteration_and_its_drain_are_a_drained_pass(micro: int, times: list[int]) -> None:
    slowest, path = max(times), sum(times)
    drain = min(path - slowest, (micro - 1) * slowest)
    drained = form_ns(Form("drained", (0,), (1,), (0,)), (micro,), [slowest], [path])
    assert max(micro * slowest, path) + drain == drained


def test_counts_of_another_problem_are_refused() -> None:
    problem, _ = hand_made(4, 8, 4, 2)
    with pytest.raises(ValueError, match="first or a last"):
        lay_out(problem, {1: 1})


def test_a_placement_that_is_none_is_told_and_no_hint() -> None:
    problem, base = hand_made(4, 8, 4, 2)
    best = best_placement(problem, LIMIT_S)
    assert faults_of(problem, best.counts, base + 2) == ()
    assert faults_of(problem, best.counts, base) == (f"value {base + 2} ns, said to be {base}",)
    lacking = dict(list(best.counts.items())[1:])
    assert any("2 of 3 layers" in fault for fault in faults_of(problem, lacking))
    assert faults_of(problem, {99: 1}) == ("counts name patterns that are not there",)
    assert best_placement(problem, LIMIT_S, lacking).value_ns == base + 2
