"""Floors of padded profiles lie below the simulator's mixture over compiled shapes; the search on them is exact."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.search.proof.bounds import RraBounds
from solver.search.proof.boxes import Boxes
from solver.search.proof.branch_and_bound import search
from solver.search.proof.floors import floors_of
from solver.search.proof.limits import Limits
from solver.search.proof.padded_floors import padded
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from tests.solver import planner_cases


@pytest.mark.parametrize("ragged", [False, True])
def test_bounds_hold_under_padding(ragged: bool) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        workload = planner_cases.random_workload(rng, pairs=10, most_input=60, most_output=20)
        lengths = lengths_of(workload, "encode")
        padding = Padding(cache_tokens=workload.most_tokens, max_prompt_tokens=workload.most_input)
        contexts = tuple(float(rung) for rung in padding.cache_rungs)
        unit = planner_cases.random_unit(rng, 200, ragged=ragged, contexts=contexts)
        pipeline = Pipeline((PlacedStage(dataclasses.replace(unit, phase_s=1e-3), 4, True, True, None),))
        conditions = Conditions(cache_tokens=workload.most_tokens)
        bounds = RraBounds(padded(floors_of(pipeline)), lengths, conditions, 20)
        b, n = (grid.ravel() for grid in np.meshgrid(np.arange(1, 31), np.arange(1, 21)))

        def evaluate(batch, iterations, pipeline=pipeline, lengths=lengths, conditions=conditions, padding=padding):
            return evaluate_rra(pipeline, lengths, conditions, batch, iterations, padding=padding)

        points = evaluate(b, n)
        there = points.throughput_rps > 0
        bound = bounds.bound(Boxes(b, b, n, n), with_tpot=True)
        assert (points.throughput_rps <= bound.throughput_rps)[there].all()
        for name in ("latency_s", "ttft_s", "tpot_s"):
            assert (getattr(points, name) >= getattr(bound, name))[there].all(), name
        limits = Limits(latency_s=float(np.quantile(points.latency_s[there], 0.4)))
        best = points.throughput_rps[limits.kept(points)].max(initial=-math.inf)
        found = search(bounds, evaluate, limits, ((1, 30), (1, 20)))
        assert found.objective == pytest.approx(best, rel=1e-12)
        assert found.complete
