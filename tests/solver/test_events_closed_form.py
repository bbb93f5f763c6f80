"""Goal A6: the event simulation and the closed forms, which share stage times alone, agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.events.arrivals import saturated
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.lengths import lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from solver.simulate.unit_costs import unit_costs
from tests.benchmarks.events_vs_closed_form import cases, compare_other, compare_rra
from tests.solver.planner_cases import paper_task, random_profile, small_cluster, small_spec


@pytest.mark.parametrize("index", range(6))
def test_rra_within_the_goal(index: int, full: bool) -> None:
    case = cases(60, seed=1)[index]
    errors = compare_rra(case, phases=8000 if full else 1200)
    assert errors.within_goal(), (case, errors)


@pytest.mark.parametrize(("task", "batch", "iterations"), [("S", 8, 8), ("C1", 6, 16), ("G", 4, 32)])
def test_rra_in_compiled_shapes_within_the_goal(task: str, batch: int, iterations: int) -> None:
    """The closed form mixes calls by probability; the simulation forms every call of every batch."""
    workload, spec, cluster = paper_task(task), small_spec(), small_cluster()
    profile = random_profile(np.random.default_rng(2), spec, padded=True)
    lengths, padding = lengths_of(workload, "encode"), Padding(workload.most_tokens, workload.most_input)
    pipeline = Pipeline(
        (PlacedStage(unit_costs(profile, spec, lengths, cluster, 1, 100, padding), 4, True, True, None),)
    )
    points = evaluate_rra(pipeline, lengths, Conditions(), np.array([batch]), np.array([iterations]), padding=padding)
    rows = int(points.max_rows[0])
    buckets = padding.buckets(batch, rows)
    schedule = Schedule(
        policy="rra",
        encode_batch=batch,
        decode_iterations=iterations,
        decode_batch=min(rows, math.ceil(points.decode_batch[0])),
        max_rows=rows,
        stages=(StageSpec("both", (0, 4), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=buckets.encode_rows[-1],
    )
    demand = saturated(workload, batch * (2 * -(-lengths.most_decode // iterations) + 700))
    source = BatchSource({"x": profile}, spec, cluster, buckets)
    machines = Machines(pipeline, pipeline, lengths.mean_input)
    found = simulate(schedule, machines, demand, Conditions(), corrected=False, source=source)
    assert found.throughput_rps == pytest.approx(float(points.throughput_rps[0]), rel=0.02)
    assert found.latency_of_output_s(workload.output_percentile(99)) == pytest.approx(
        float(points.latency_s[0]), rel=0.03
    )


@pytest.mark.parametrize("policy", ["static", "dsi", "iteration", "chunked", "waa"])
def test_other_policies_agree_on_throughput(policy: str, full: bool) -> None:
    found = compare_other(policy, "C1", seed=1, phases=4000 if full else 800)
    assert abs(float(str(found["throughput"]))) <= 0.03, found
