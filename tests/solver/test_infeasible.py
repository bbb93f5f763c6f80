"""Why nothing keeps the limits: every figure against looking at all candidates; and where Algorithm 1 fails."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.search.proof.algorithm1 import algorithm1
from solver.search.proof.branch_and_bound import search
from solver.search.proof.infeasible import why_infeasible
from solver.search.proof.limits import Limits
from tests.conftest import FULL
from tests.solver.test_branch_and_bound import MOST_ENCODE, MOST_ITERATIONS, Instance, make_instance

BOX = (1, MOST_ENCODE), (1, MOST_ITERATIONS)


def least(instance: Instance, name: str, limits: Limits) -> float:
    b, n = (np.array(column) for column in zip(*instance.grid, strict=True))
    points = instance.evaluate(b, n)
    values = limits.memory_share(points) if name == "memory" else getattr(points, name)
    relaxed = dataclasses.replace(limits, memory_bytes=()) if name == "memory" else limits.without(name)
    return float(values[relaxed.kept(points)].min(initial=math.inf))


def test_names_what_binds_and_the_nearest_that_works() -> None:
    explained = 0
    for seed in range(60 if FULL else 16):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        stages = len(instance.pipeline.stages)
        shares = sorted(max(plain.memory_bytes) for plain in instance.grid.values())
        latencies = sorted(plain.latency_s for plain in instance.grid.values())
        capacity = (shares[len(shares) // 10] * 1.0001,) * stages
        limits = Limits(
            latency_s=latencies[0] * 0.8, tpot_s=1.0, memory_bytes=capacity if seed % 2 else (1e18,) * stages
        )
        bounds = instance.bounds(limits.memory_bytes[0])
        reasons = {r.name: r for r in why_infeasible(bounds, instance.evaluate, limits, BOX)}
        assert set(reasons) == {"latency_s", "tpot_s", "memory"}
        latency = reasons["latency_s"]
        nearest = least(instance, "latency_s", limits)
        assert (latency.nearest or math.inf) == pytest.approx(nearest, rel=1e-12)
        assert latency.binds
        # Memory and the other bound relaxed do not help while no candidate is quick enough.
        assert reasons["memory"].nearest is None
        if latency.nearest is not None:
            explained += 1
            eased = dataclasses.replace(limits, latency_s=latency.nearest * (1 + 1e-9))
            assert search(bounds, instance.evaluate, eased, BOX).best is not None
    assert explained > 5


def test_memory_that_binds_names_its_stage() -> None:
    told = 0
    for seed in range(30 if FULL else 10):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        stages = len(instance.pipeline.stages)
        capacity = min(max(plain.memory_bytes) for plain in instance.grid.values()) * 0.9
        limits = Limits(memory_bytes=(capacity,) * stages)
        (memory,) = why_infeasible(instance.bounds(capacity), instance.evaluate, limits, BOX)
        assert memory.binds
        assert memory.nearest == pytest.approx(least(instance, "memory", limits), rel=0.021)
        assert memory.candidate is not None
        plain = instance.grid[memory.candidate]
        assert memory.stage == int(np.argmax(plain.memory_bytes))
        told += 1
    assert told > 5


def test_algorithm_1_is_right_where_its_assumption_holds_and_wrong_elsewhere() -> None:
    """It never returns more than there is; over ragged profiles it misses some optima and, at times, everything."""
    worse = none = 0
    for seed in range(120 if FULL else 30):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        latencies = [plain.latency_s for plain in instance.grid.values()]
        limits = Limits(latency_s=float(np.quantile(latencies, 0.2)) * (1 + 1e-7))
        best = max(p.throughput_rps for p in instance.grid.values() if p.latency_s <= limits.latency_s)
        believed = algorithm1(instance.evaluate, limits, BOX)
        assert believed.throughput_rps <= best * (1 + 1e-9)
        none += believed.best is None
        worse += believed.best is not None and believed.throughput_rps < best * (1 - 1e-9)
        if seed % 8 == 0:
            patient = algorithm1(instance.evaluate, limits, BOX, tolerance=10.0)
            assert patient.throughput_rps == pytest.approx(best, rel=1e-9)
    assert worse
    assert none
