"""The search finds what exhaustive search finds, on profiles without order; every bound holds (scheduling.md, S4)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.facts.workload import Ints, Workload
from solver.search.proof.bounds import RraBounds
from solver.search.proof.boxes import Bounds, Boxes
from solver.search.proof.branch_and_bound import search
from solver.search.proof.floors import Floors, MemoryFloor, floors_of, lowest
from solver.search.proof.limits import Limits
from solver.simulate.costs import Pipeline
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.points import Conditions, Points
from solver.simulate.rra import evaluate_rra
from tests.conftest import FULL
from tests.solver import planner_cases
from tests.solver.plain_rra import Plain, plain_rra

MOST_ENCODE, MOST_ITERATIONS = 12, 9
# Rows that costs are tabulated for: small enough that some candidates lie beyond them.
MOST_ROWS = 24
# Limits lie this much above some candidate's value, so that rounding does not decide who keeps them.
ROOM = 1 + 1e-7
INSTANCES = 1200 if FULL else 150


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
    """A small problem with every candidate evaluated by loops."""

    workload: Workload
    lengths: Lengths
    pipeline: Pipeline
    conditions: Conditions
    encode_micro_batches: int
    micro_batches: int
    grid: dict[tuple[int, int], Plain]

    def evaluate(self, encode_batch: Ints, iterations: Ints) -> Points:
        return evaluate_rra(
            self.pipeline,
            self.lengths,
            self.conditions,
            encode_batch,
            iterations,
            self.encode_micro_batches,
            self.micro_batches,
        )

    def floors(self, capacity: float = math.inf) -> Floors:
        memory = None if math.isinf(capacity) else memory_floor(self.pipeline, self.conditions, capacity)
        return floors_of(self.pipeline, self.encode_micro_batches, self.micro_batches, memory)

    def bounds(self, capacity: float = math.inf) -> RraBounds:
        return RraBounds(self.floors(capacity), self.lengths, self.conditions, MOST_ITERATIONS)


def memory_floor(pipeline: Pipeline, conditions: Conditions, capacity: float) -> MemoryFloor:
    stages = pipeline.stages
    token = np.array([stage.layers * stage.unit.cache_token_bytes for stage in stages], np.float64)
    slots = conditions.cache_layout == "slots"
    return MemoryFloor(
        fixed_bytes=np.array(
            [
                s.layers * s.unit.weights_bytes + s.first * s.unit.embed_bytes + s.last * s.unit.head_bytes
                for s in stages
            ],
            np.float64,
        ),
        row_bytes=token * conditions.cache_tokens * slots,
        token_bytes=token * (not slots),
        capacity_bytes=np.full(len(stages), capacity),
    )


def make_instance(seed: int) -> Instance:
    rng = np.random.default_rng(seed)
    workload = planner_cases.random_workload(rng, pairs=8, most_output=int(rng.integers(2, 20)))
    emits_first = rng.random() < 0.7
    pipeline = planner_cases.random_pipeline(rng, int(rng.integers(1, 4)), MOST_ROWS, ragged=rng.random() < 0.7)
    pipeline = dataclasses.replace(
        pipeline, stages=tuple(_with_phase_cost(stage, rng.uniform(0, 2e-3)) for stage in pipeline.stages)
    )
    conditions = Conditions(
        latency_percentile=float(rng.choice([50, 90, 99])),
        tpot_percentile=float(rng.choice([50, 90, 99])),
        compaction="phase" if rng.random() < 0.5 else "iteration",
        delivery=("iteration", "phase", "phase+1")[int(rng.integers(3))],
        cache_layout="slots" if rng.random() < 0.5 else "paged",
        cache_tokens=int(rng.integers(50, 300)),
    )
    counts = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    grid = {}
    for b in range(1, MOST_ENCODE + 1):
        for n in range(1, MOST_ITERATIONS + 1):
            plain = plain_rra(workload, emits_first, pipeline, conditions, b, n, *counts)
            if plain is not None:
                grid[b, n] = plain
    lengths = lengths_of(workload, "encode" if emits_first else "decode")
    return Instance(workload, lengths, pipeline, conditions, *counts, grid)


def _with_phase_cost(stage, seconds):
    return dataclasses.replace(stage, unit=dataclasses.replace(stage.unit, phase_s=float(seconds)))


def random_limits(rng: np.random.Generator, instance: Instance) -> Limits:
    """Some bounds drawn around what the grid holds; a third of them below its least, so that nothing keeps them."""
    found = list(instance.grid.values())

    def draw(name: str, chance: float) -> float:
        values = sorted(getattr(plain, name) for plain in found)
        if rng.random() > chance:
            return math.inf
        return values[0] * 0.99 if rng.random() < 0.25 else float(rng.choice(values)) * ROOM

    shares = [max(plain.memory_bytes) for plain in found]
    tight = rng.random() < 0.7
    capacity = float(np.quantile(shares, rng.uniform(0.05, 0.5))) * ROOM if tight else 1e18
    return Limits(
        latency_s=draw("latency_s", 0.5),
        ttft_s=draw("ttft_s", 0.25),
        tpot_s=draw("tpot_s", 0.25),
        memory_bytes=(capacity,) * len(instance.pipeline.stages),
    )


def keeps(plain: Plain, limits: Limits, with_memory: bool = True) -> bool:
    return (
        plain.latency_s <= limits.latency_s
        and plain.ttft_s <= limits.ttft_s
        and plain.tpot_s <= limits.tpot_s
        and (not with_memory or max(plain.memory_bytes) <= limits.memory_bytes[0])
    )


def best_of(instance: Instance, limits: Limits, with_memory: bool = True) -> float:
    kept = [p.throughput_rps for p in instance.grid.values() if keeps(p, limits, with_memory)]
    return max(kept, default=-math.inf)


def test_equals_exhaustive_search() -> None:
    infeasible = memory_bound = 0
    box = (1, MOST_ENCODE), (1, MOST_ITERATIONS)
    for seed in range(INSTANCES):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        limits = random_limits(np.random.default_rng(seed + 10**6), instance)
        best = best_of(instance, limits)
        found = search(instance.bounds(limits.memory_bytes[0]), instance.evaluate, limits, box)
        assert found.objective == pytest.approx(best, rel=1e-9), f"seed {seed}"
        assert found.complete
        assert found.gap == 0
        assert found.bound == found.objective
        if found.best is not None:
            assert instance.grid[found.best].throughput_rps == pytest.approx(best, rel=1e-9)
        infeasible += best == -math.inf
        memory_bound += -math.inf < best < best_of(instance, limits, with_memory=False)
    assert infeasible >= INSTANCES / 5, infeasible
    assert memory_bound >= INSTANCES / 5, memory_bound


def test_bounds_hold_for_every_candidate_of_a_box() -> None:
    """All four bounds, on boxes of every size, against each candidate's plain evaluation."""
    for seed in range(2000, 2000 + (300 if FULL else 25)):
        instance = make_instance(seed)
        rng = np.random.default_rng(seed)
        bounds = instance.bounds(1.0)
        share = {key: max(plain.memory_bytes) for key, plain in instance.grid.items()}
        for turn in range(20):
            # Single candidates in turn with larger boxes: a bound that is wrong is wrong there first.
            b = np.sort(rng.integers(1, MOST_ENCODE + 1, 2)) if turn % 2 else rng.integers(1, MOST_ENCODE + 1, 1)
            n = (
                np.sort(rng.integers(1, MOST_ITERATIONS + 1, 2))
                if turn % 2
                else rng.integers(1, MOST_ITERATIONS + 1, 1)
            )
            bound = bounds.bound(Boxes(b[:1], b[-1:], n[:1], n[-1:]), with_tpot=True)
            inside = {k: v for k, v in instance.grid.items() if b[0] <= k[0] <= b[-1] and n[0] <= k[1] <= n[-1]}
            for key, plain in inside.items():
                where = f"seed {seed} box {b} {n} candidate {key}"
                assert plain.throughput_rps <= bound.throughput_rps[0], where
                assert plain.latency_s >= bound.latency_s[0], where
                assert plain.ttft_s >= bound.ttft_s[0], where
                assert plain.tpot_s >= bound.tpot_s[0], where
                assert share[key] >= bound.memory_share[0], where
            if math.isinf(bound.memory_share[0]):
                assert not inside


def test_bounds_of_single_candidates_are_close() -> None:
    """One candidate leaves little to give away: contexts within a segment, and rounding."""
    rng = np.random.default_rng(5)
    workload = planner_cases.random_workload(rng, pairs=8, most_output=12)
    lengths = lengths_of(workload, "encode")
    pipeline = planner_cases.random_pipeline(rng, 2, 64)
    conditions = Conditions(compaction="phase", delivery="iteration")
    bounds = RraBounds(floors_of(pipeline), lengths, conditions, 30)
    b, n = (grid.ravel() for grid in np.meshgrid(np.arange(1, 9), np.arange(1, 31)))
    bound = bounds.bound(Boxes(b, b, n, n), with_tpot=True)
    points = evaluate_rra(pipeline, lengths, conditions, b, n)
    np.testing.assert_allclose(bound.throughput_rps, points.throughput_rps, rtol=3e-2)
    np.testing.assert_allclose(bound.latency_s, points.latency_s, rtol=3e-2)
    np.testing.assert_allclose(bound.ttft_s, points.ttft_s, rtol=1e-9)


def test_floors_lie_below_fractional_rows() -> None:
    """Between whole rows and between contexts the largest of several stages bends; floors stay below it."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pipeline = planner_cases.random_pipeline(rng, 3, 20, ragged=seed % 3 > 0)
        parts = int(rng.integers(1, 5))
        floors = floors_of(pipeline, 1, parts)
        rows, context = rng.uniform(1, 20 * parts, 400), rng.uniform(0.0, 350.0, 400)
        stage = pipeline.decode_s(rows / parts, context)
        exact = np.maximum(parts * stage.max(axis=0), stage.sum(axis=0) + pipeline.return_s)
        drain = np.minimum(stage.sum(axis=0) - stage.max(axis=0), (parts - 1) * stage.max(axis=0))
        assert (_bilinear(floors.decode_s, floors.contexts, rows, context) <= exact * (1 + 1e-12)).all()
        assert (_bilinear(floors.drain_s, floors.contexts, rows, context) <= drain * (1 + 1e-12)).all()


def _bilinear(table: np.ndarray, knots: np.ndarray, rows: np.ndarray, context: np.ndarray) -> np.ndarray:
    by_rows = np.array([np.interp(rows, np.arange(table.shape[1]), column) for column in table])
    return np.array([np.interp(c, knots, by_rows[:, i]) for i, c in enumerate(context)])


def test_a_family_is_bounded_by_its_floors() -> None:
    """No member of a family, at its own count of micro-batches, beats the bounds of the family's floors."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        workload = planner_cases.random_workload(rng, pairs=8, most_output=12)
        lengths, conditions = lengths_of(workload, "encode"), Conditions(compaction="iteration", delivery="iteration")
        members = [planner_cases.random_pipeline(rng, 1 + i, 24, ragged=True) for i in range(3)]
        memories = [memory_floor(member, Conditions(cache_tokens=100), 5e6) for member in members]
        family = lowest([floors_of(p, 1, 1 + i, memories[i]) for i, p in enumerate(members)])
        bounds = RraBounds(family, lengths, conditions, 12)
        b, n = (grid.ravel() for grid in np.meshgrid(np.arange(1, 13), np.arange(1, 13)))
        bound = bounds.bound(Boxes(b, b, n, n), with_tpot=True)
        for i, member in enumerate(members):
            points = evaluate_rra(member, lengths, dataclasses.replace(conditions, cache_tokens=100), b, n, 1, 1 + i)
            there = points.throughput_rps > 0
            assert (points.throughput_rps <= bound.throughput_rps)[there].all()
            assert (points.latency_s >= bound.latency_s)[there].all()
            assert (points.tpot_s >= bound.tpot_s)[there].all()
            fits = (points.memory_bytes <= 5e6).all(axis=0)
            assert (bound.memory_share[fits] <= 1).all()


@pytest.fixture(scope="module")
def larger() -> tuple[Bounds, Instance]:
    """A grid that is not evaluated beforehand."""
    rng = np.random.default_rng(11)
    workload = planner_cases.paper_task("S", inputs=4)
    pipeline = planner_cases.random_pipeline(rng, 2, 400, ragged=True)
    instance = Instance(workload, lengths_of(workload, "encode"), pipeline, Conditions(), 1, 1, {})
    return RraBounds(instance.floors(), instance.lengths, instance.conditions, 60), instance


def test_a_gap_ends_the_search_early_and_is_kept(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    limits, box = Limits(latency_s=0.9), ((1, 100), (1, 60))
    best = search(bounds, instance.evaluate, limits, box)
    assert best.best is not None
    close = search(bounds, instance.evaluate, limits, box, gap=0.1)
    assert close.nodes < best.nodes
    assert close.gap <= 0.1
    assert close.objective <= best.objective <= close.bound
    stopped = search(bounds, instance.evaluate, limits, box, node_limit=100)
    assert not stopped.complete
    assert stopped.objective <= best.objective <= stopped.bound


def test_equal_searches_are_equal(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    runs = [search(bounds, instance.evaluate, Limits(latency_s=0.9), ((1, 100), (1, 60))) for _ in range(2)]
    first, second = (dataclasses.replace(run, seconds=0.0, trace=(), points=None) for run in runs)
    assert dataclasses.astuple(first) == dataclasses.astuple(second)


def test_the_trace_closes_from_both_sides(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    told: list[tuple[float, float, float]] = []
    found = search(bounds, instance.evaluate, Limits(), ((1, 100), (1, 60)), on_progress=lambda *row: told.append(row))
    seconds, incumbents, tops = (list(column) for column in zip(*found.trace, strict=True))
    assert seconds == sorted(seconds)
    assert incumbents == sorted(incumbents)
    assert tops == sorted(tops, reverse=True)
    assert incumbents[-1] == tops[-1] == found.objective
    assert set(found.trace) <= set(told)


def test_an_incumbent_from_elsewhere_leaves_only_better_ones(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    box = (1, 100), (1, 60)
    best = search(bounds, instance.evaluate, Limits(), box)
    none = search(bounds, instance.evaluate, Limits(), box, incumbent=best.objective)
    assert none.best is None
    assert none.complete
    assert none.bound == best.objective
    again = search(bounds, instance.evaluate, Limits(), box, incumbent=best.objective * 0.99)
    assert again.best == best.best


def test_no_time_leaves_no_proof(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    found = search(bounds, instance.evaluate, Limits(), ((1, 100), (1, 60)), time_limit_s=0.0)
    assert (found.best, found.complete, found.gap) == (None, False, math.inf)


def test_an_empty_box_is_refused(larger: tuple[Bounds, Instance]) -> None:
    bounds, instance = larger
    with pytest.raises(ValueError, match=r"box: the second variable's range 5\.\.4 is empty"):
        search(bounds, instance.evaluate, Limits(), ((1, 10), (5, 4)))


def test_one_token_each_needs_no_decoding() -> None:
    """Where every answer is the one token that encode emits, phases of decode are empty."""
    rng = np.random.default_rng(3)
    workload = planner_cases.random_workload(rng, pairs=5, most_output=1)
    lengths, conditions = lengths_of(workload, "encode"), Conditions(delivery="iteration", cache_tokens=10)
    pipeline = planner_cases.random_pipeline(rng, 1, 16, ragged=True)
    bounds = RraBounds(floors_of(pipeline), lengths, conditions, 4)
    b, n = (grid.ravel() for grid in np.meshgrid(np.arange(1, 17), np.arange(1, 5)))
    points = evaluate_rra(pipeline, lengths, conditions, b, n)
    bound = bounds.bound(Boxes(b, b, n, n), with_tpot=True)
    assert (points.throughput_rps <= bound.throughput_rps).all()
    assert (points.latency_s >= bound.latency_s).all()
    found = search(bounds, lambda x, y: evaluate_rra(pipeline, lengths, conditions, x, y), Limits(), ((1, 16), (1, 4)))
    assert found.objective == points.throughput_rps.max()
