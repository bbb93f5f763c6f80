"""WAA in compiled shapes: plain loops agree, bounds hold, the search is exact, events confirm the closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.facts.cluster import Link
from solver.plan.schedule import Schedule, StageSpec
from solver.search.proof.boxes import Boxes
from solver.search.proof.branch_and_bound import search
from solver.search.proof.limits import Limits
from solver.search.proof.waa_bounds import WaaBounds, waa_memory
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.events.arrivals import saturated
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions, Points
from solver.simulate.unit_costs import unit_costs
from solver.simulate.waa import Split, evaluate_waa
from tests.conftest import FULL
from tests.solver import planner_cases
from tests.solver.plain_waa import PlainWaa, figures, grid

MOST_ENCODE, MOST_DECODE = 5, 24


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
    """A split whose decode side is tabulated by rungs, as a padded profile's is."""

    split: Split
    lengths: Lengths
    conditions: Conditions
    padding: Padding
    micro_batches: int

    def evaluate(self, encode_batch: np.ndarray, rows: np.ndarray) -> Points:
        return evaluate_waa(
            self.split, self.lengths, self.conditions, encode_batch, rows, self.micro_batches, padding=self.padding
        )

    def bounds(self, capacity: float) -> WaaBounds:
        sides = [(capacity,) * len(side.stages) for side in (self.split.encode, self.split.decode)]
        memory = waa_memory(self.split, self.lengths, self.conditions, *sides)
        return WaaBounds(
            self.split, self.lengths, self.conditions, self.micro_batches, memory, distinct=True, padding=self.padding
        )

    @property
    def plain(self) -> PlainWaa:
        emits_first = self.lengths.first_token == "encode"
        sizes = self.padding.cache_tokens, self.padding.max_prompt_tokens
        return PlainWaa(
            self.split, self.lengths.workload, emits_first, self.conditions, *sizes, parts=self.micro_batches
        )


def make_instance(seed: int, most_rows: int = 40) -> Instance:
    """Encode as quick, on the whole, as decode: now the one is the slower side, now the other."""
    rng = np.random.default_rng(seed)
    workload = planner_cases.random_workload(rng, pairs=8, most_input=100, most_output=int(rng.integers(1, 30)))
    cache_tokens = workload.most_tokens + int(rng.integers(0, 100))
    padding = Padding(cache_tokens, min(cache_tokens - 1, workload.most_input + int(rng.integers(0, 20))))
    contexts = tuple(float(rung) for rung in padding.cache_rungs)
    ragged = rng.random() < 0.6
    phase_s = float(rng.choice([0.0, 1e-3]))

    def side(stages: int, scale: float) -> Pipeline:
        unit = planner_cases.random_unit(rng, most_rows, ragged=ragged, contexts=contexts)
        unit = dataclasses.replace(unit, encode_s=unit.encode_s * scale, phase_s=phase_s)
        ends = [(index == 0, index == stages - 1) for index in range(stages)]
        placed = (
            PlacedStage(unit, int(rng.integers(1, 4)), first, last, None if last else "host") for first, last in ends
        )
        return Pipeline(tuple(placed), return_s=1e-4 if stages > 1 else 0.0)

    stages = int(rng.integers(1, 3))
    split = Split(
        encode=side(int(rng.integers(1, 3)), float(10 ** rng.uniform(-1.5, 0.5))),
        decode=side(stages, 1.0),
        move=Link(1e-5, 10 ** rng.uniform(6.5, 10)),
        encode_replicas=int(rng.integers(1, 3)),
        decode_replicas=int(rng.integers(1, 3)),
    )
    conditions = Conditions(
        latency_percentile=float(rng.choice([50, 90, 99])),
        tpot_percentile=float(rng.choice([50, 90, 99])),
        compaction="iteration",
        delivery="iteration",
        cache_layout="paged" if rng.random() < 0.4 else "slots",
        cache_tokens=cache_tokens,
    )
    first_token = "encode" if rng.random() < 0.7 else "decode"
    return Instance(split, lengths_of(workload, first_token), conditions, padding, int(rng.integers(1, stages + 1)))


def everything(instance: Instance) -> tuple[np.ndarray, np.ndarray, Points]:
    b, n = (g.ravel() for g in np.meshgrid(np.arange(1, MOST_ENCODE + 1), np.arange(1, MOST_DECODE + 1), indexing="ij"))
    return b, n, instance.evaluate(b, n)


@pytest.mark.parametrize("seed", range(200 if FULL else 12))
def test_plain_loops_and_the_closed_form_agree(seed: int) -> None:
    """All of a grid; both refuse the same."""
    instance = make_instance(seed)
    _, _, points = everything(instance)
    found = list(grid(instance.plain, MOST_ENCODE, MOST_DECODE).values())
    there = points.throughput_rps > 0
    assert there.tolist() == [plain is not None for plain in found]
    for name in ("throughput_rps", "latency_s", "ttft_s", "max_rows"):
        own = [getattr(plain, name) for plain in found if plain is not None]
        assert getattr(points, name)[there].tolist() == pytest.approx(own, rel=2e-5), name


def test_search_equals_looking_at_everything_with_plain_loops() -> None:
    found_any = infeasible = full = encode_bound = 0
    for seed in range(1000, 1000 + (300 if FULL else 16)):
        rng = np.random.default_rng(seed)
        instance = make_instance(seed)
        plain = grid(instance.plain, MOST_ENCODE, MOST_DECODE)
        latency_s, ttft_s = (_between(rng, figures(plain, name)) for name in ("latency_s", "ttft_s"))
        limits = Limits(latency_s=latency_s, ttft_s=ttft_s)
        kept = [each for each in plain.values() if each and each.latency_s <= latency_s and each.ttft_s <= ttft_s]
        best = max(kept, key=lambda each: each.throughput_rps, default=None)
        box = (1, MOST_ENCODE), (1, MOST_DECODE)
        found = search(instance.bounds(math.inf), instance.evaluate, limits, box)
        assert found.complete
        if best is None:
            assert found.best is None, f"seed {seed}"
            infeasible += 1
            continue
        assert found.objective == pytest.approx(best.throughput_rps, rel=2e-5), f"seed {seed}"
        found_any += 1
        full += best.rows == best.max_rows
        encode_bound += best.rows != round(best.rows)
    assert found_any > full > 0 < encode_bound
    assert infeasible


def _between(rng: np.random.Generator, values: np.ndarray) -> float:
    """A limit that no candidate sits on: in the middle of two that do not coincide; or none."""
    ordered = np.unique(values)
    gaps = np.flatnonzero(ordered[1:] > ordered[:-1] * 1.001)
    if not gaps.size or rng.random() < 0.3:
        return math.inf
    at = int(rng.choice(np.append(gaps, -1)))
    return float(ordered[0] / 2 if at < 0 else (ordered[at] + ordered[at + 1]) / 2)


def test_bounds_hold_for_every_candidate_of_a_box() -> None:
    for seed in range(300, 300 + (300 if FULL else 20)):
        rng = np.random.default_rng(seed)
        instance = make_instance(seed)
        b, n, points = everything(instance)
        bounds, there = instance.bounds(1.0), points.throughput_rps > 0
        for turn in range(12):
            first = np.sort(rng.integers(1, MOST_ENCODE + 1, 2)) if turn % 2 else rng.integers(1, MOST_ENCODE + 1, 1)
            second = np.sort(rng.integers(1, MOST_DECODE + 1, 2)) if turn % 3 else rng.integers(1, MOST_DECODE + 1, 1)
            bound = bounds.bound(Boxes(first[:1], first[-1:], second[:1], second[-1:]), with_tpot=True)
            inside = there & (b >= first[0]) & (b <= first[-1]) & (n >= second[0]) & (n <= second[-1])
            where = f"seed {seed} box {first} {second}"
            assert (points.throughput_rps[inside] <= bound.throughput_rps).all(), where
            assert (points.latency_s[inside] >= bound.latency_s).all(), where
            assert (points.ttft_s[inside] >= bound.ttft_s).all(), where
            assert (points.tpot_s[inside] >= bound.tpot_s).all(), where
            assert (points.memory_bytes.max(axis=0)[inside] >= bound.memory_share).all(), where


@pytest.mark.parametrize(("task", "scale"), [("S", 0.3), ("S", 4.0), ("C1", 1.0), ("C1", 12.0), ("G", 6.0)])
def test_events_confirm_the_closed_form(task: str, scale: float, full: bool) -> None:
    """The closed form mixes calls by probability; the simulation forms every call of every batch.

    `scale`: how slow encode is; small ones leave decode full, large ones let it wait.
    """
    workload, spec, cluster = planner_cases.paper_task(task), planner_cases.small_spec(), planner_cases.small_cluster()
    profile = planner_cases.random_profile(np.random.default_rng(2), spec, padded=True)
    slower = tuple(
        dataclasses.replace(times, encode=dataclasses.replace(times.encode, seconds=times.encode.seconds * scale))
        for times in profile.layers
    )
    profile = dataclasses.replace(profile, layers=slower)
    lengths, padding = lengths_of(workload, "encode"), Padding(workload.most_tokens, workload.most_input)
    unit = unit_costs(profile, spec, lengths, cluster, 1, 128, padding)
    pipeline = Pipeline((PlacedStage(unit, 4, True, True, None),))
    split, planned = Split(pipeline, pipeline, cluster.island), np.arange(8, 100)
    batch = 8
    points = evaluate_waa(split, lengths, Conditions(), np.full_like(planned, batch), planned, padding=padding)
    at = int(points.throughput_rps.argmax())
    rows = int(points.max_rows[at])
    buckets = padding.buckets(batch, rows)
    schedule = Schedule(
        policy="waa",
        encode_batch=batch,
        decode_iterations=int(points.decode_iterations[at]),
        decode_batch=min(rows, round(float(points.decode_batch[at]))),
        max_rows=rows,
        stages=(StageSpec("encode", (0, 4), (0,), 1), StageSpec("decode", (0, 4), (1,), 1)),
        micro_batch=rows,
        encode_micro_batch=buckets.encode_rows[-1],
    )
    held = max(stage.layers * stage.unit.cache_token_bytes for stage in pipeline.stages) * lengths.mean_input
    machines = Machines(pipeline, pipeline, lengths.mean_input, float(cluster.island.transfer_s(held)))
    source = BatchSource({"x": profile}, spec, cluster, buckets)
    demand = saturated(workload, 8000 if full else 2500)
    slower_encode = float(points.decode_batch[at]) != planned[at]
    assert slower_encode == (scale in (4.0, 12.0))
    found = simulate(schedule, machines, demand, Conditions(), source=source, corrected=False)
    assert found.throughput_rps == pytest.approx(float(points.throughput_rps[at]), rel=0.03)
    assert found.residents_mean == pytest.approx(float(points.decode_batch[at]), rel=0.05)
    assert found.latency_of_output_s(workload.output_percentile(99)) == pytest.approx(
        float(points.latency_s[at]), rel=0.05
    )
