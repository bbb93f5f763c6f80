"""WAA under the same search: its bounds hold, and it finds what looking at every candidate finds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.facts.cluster import Link
from solver.facts.workload import Floats
from solver.search.proof.boxes import Boxes
from solver.search.proof.branch_and_bound import search
from solver.search.proof.limits import Limits
from solver.search.proof.waa_bounds import WaaBounds, waa_memory
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.points import Conditions, Points
from solver.simulate.waa import Split, evaluate_waa
from tests.conftest import FULL
from tests.solver import planner_cases

MOST_ENCODE, MOST_DECODE = 14, 40


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
    split: Split
    lengths: Lengths
    conditions: Conditions
    micro_batches: int

    def evaluate(self, encode_batch: np.ndarray, rows: np.ndarray) -> Points:
        return evaluate_waa(self.split, self.lengths, self.conditions, encode_batch, rows, self.micro_batches)

    def bounds(self, capacity: float, distinct: bool = False) -> WaaBounds:
        sides = [(capacity,) * len(side.stages) for side in (self.split.encode, self.split.decode)]
        memory = waa_memory(self.split, self.lengths, self.conditions, *sides)
        return WaaBounds(self.split, self.lengths, self.conditions, self.micro_batches, memory, distinct)


def make_instance(seed: int) -> Instance:
    rng = np.random.default_rng(seed)
    workload = planner_cases.random_workload(rng, pairs=10, most_output=int(rng.integers(2, 40)))
    ragged = rng.random() < 0.7
    split = Split(
        encode=planner_cases.random_pipeline(rng, int(rng.integers(1, 4)), 16, ragged=ragged),
        decode=planner_cases.random_pipeline(rng, int(rng.integers(1, 4)), 24, ragged=ragged),
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
        cache_tokens=int(rng.integers(50, 300)),
    )
    first_token = "encode" if rng.random() < 0.7 else "decode"
    return Instance(split, lengths_of(workload, first_token), conditions, int(rng.integers(1, 3)))


def everything(instance: Instance) -> tuple[np.ndarray, np.ndarray, Points]:
    b, n = (grid.ravel() for grid in np.meshgrid(np.arange(1, MOST_ENCODE + 1), np.arange(1, MOST_DECODE + 1)))
    return b, n, instance.evaluate(b, n)


def test_equals_looking_at_everything() -> None:
    found_any = infeasible = 0
    for seed in range(500 if FULL else 60):
        rng = np.random.default_rng(seed + 10**6)
        instance = make_instance(seed)
        _, _, points = everything(instance)
        capacity = float(np.quantile(points.memory_bytes.max(axis=0), rng.uniform(0.1, 1)))
        limits = Limits(
            latency_s=_draw(rng, points.latency_s),
            ttft_s=_draw(rng, points.ttft_s),
            tpot_s=_draw(rng, points.tpot_s),
            memory_bytes=(capacity,) * len(points.memory_bytes),
        )
        best = points.throughput_rps[limits.kept(points)].max(initial=-math.inf)
        box = (1, MOST_ENCODE), (1, MOST_DECODE)
        found = search(instance.bounds(capacity, distinct=seed % 2 == 0), instance.evaluate, limits, box)
        assert found.objective == pytest.approx(best, rel=1e-12), f"seed {seed}"
        assert found.complete
        found_any += best > 0
        infeasible += best == -math.inf
    assert found_any
    assert infeasible


def _draw(rng: np.random.Generator, values: Floats) -> float:
    return float(np.quantile(values, rng.uniform(0, 1))) if rng.random() < 0.4 else math.inf


def test_bounds_hold_for_every_candidate_of_a_box() -> None:
    for seed in range(300, 300 + (300 if FULL else 40)):
        rng = np.random.default_rng(seed)
        instance = make_instance(seed)
        b, n, points = everything(instance)
        bounds = instance.bounds(1.0)
        for turn in range(12):
            first = np.sort(rng.integers(1, MOST_ENCODE + 1, 2)) if turn % 2 else rng.integers(1, MOST_ENCODE + 1, 1)
            second = np.sort(rng.integers(1, MOST_DECODE + 1, 2)) if turn % 3 else rng.integers(1, MOST_DECODE + 1, 1)
            bound = bounds.bound(Boxes(first[:1], first[-1:], second[:1], second[-1:]), with_tpot=True)
            inside = (b >= first[0]) & (b <= first[-1]) & (n >= second[0]) & (n <= second[-1])
            where = f"seed {seed} box {first} {second}"
            assert (points.throughput_rps[inside] <= bound.throughput_rps).all(), where
            assert (points.latency_s[inside] >= bound.latency_s).all(), where
            assert (points.ttft_s[inside] >= bound.ttft_s).all(), where
            assert (points.tpot_s[inside] >= bound.tpot_s).all(), where
            assert (points.memory_bytes.max(axis=0)[inside] >= bound.memory_share).all(), where
