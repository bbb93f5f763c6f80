"""The highest rate that keeps a bound: found where a queue's mathematics says it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.costs import Pipeline
from solver.simulate.events.arrivals import arriving
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.rate import highest_rate
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.points import Conditions
from tests.solver.planner_cases import random_pipeline, random_workload

CLOCK = Conditions(clock="arrival", compaction="iteration", delivery="iteration")


def served_one_by_one(rate_rps: float, requests: int = 600) -> Outcome:
    """Answers of one token, encoded one at a time: a queue of constant service, 10 ms each."""
    stage = random_pipeline(np.random.default_rng(0), 1, 4).stages[0]
    unit = dataclasses.replace(
        stage.unit,
        encode_s=np.array([0.0, 1, 1, 1, 1]) * 0.01,
        embed_encode_s=np.zeros(5),
        head_encode_s=np.zeros(5),
    )
    pipeline = Pipeline((dataclasses.replace(stage, unit=unit, layers=1),))
    workload = random_workload(np.random.default_rng(0), most_output=1)
    schedule = Schedule("static", 1, 1, 1, 1, (StageSpec("both", (0, 1), (0,), 1),), 1, 1)
    demand = arriving(workload, requests, rate_rps, seed=3)
    return simulate(schedule, Machines(pipeline, pipeline, 100.0), demand, CLOCK)


def test_mean_wait_is_that_of_an_m_d_1_queue() -> None:
    found = served_one_by_one(70.0, requests=4000)
    expected = 0.01 + 0.7 * 0.01 / (2 * 0.3)
    assert float(found.latencies_s("arrival").mean()) == pytest.approx(expected, rel=0.1)


def test_highest_rate_brackets_the_bound() -> None:
    bound_s = 0.05
    found = highest_rate(served_one_by_one, lambda outcome: outcome.latency_s(CLOCK) <= bound_s, first=10.0)
    assert 0 < found.speed < found.failed <= found.speed * 1.01
    assert found.speed < 100
    assert found.outcome is not None
    assert found.outcome.latency_s(CLOCK) <= bound_s < served_one_by_one(found.failed).latency_s(CLOCK)


def test_nothing_holds_or_everything_does() -> None:
    nothing = highest_rate(served_one_by_one, lambda outcome: False, first=10.0, most=4.0)
    assert (nothing.speed, nothing.outcome) == (0.0, None)
    everything = highest_rate(served_one_by_one, lambda outcome: True, first=10.0, most=4.0)
    assert everything.failed == float("inf")
    with pytest.raises(ValueError, match="first"):
        highest_rate(served_one_by_one, lambda outcome: True, first=0.0)
