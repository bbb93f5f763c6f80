"""Devices that are slower than their profiles: every time of a prediction, and of the bounds, by its name."""

from __future__ import annotations

import dataclasses

import pytest

from solver.plan.at_pace import at_pace, profile_bounds
from solver.plan.bounds import Bounds
from solver.plan.prediction import Prediction, Simulated, StagePrediction
from tests.exegpt_jax.runner_bench import plan_of

PACE = 1.25


def numbers_of(record: Prediction) -> dict[str, float]:
    """Of a dataclass of numbers and of what lies in it, by path."""
    found: dict[str, float] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                walk(f"{path}.{name}", each)
        elif isinstance(value, list | tuple):
            for index, each in enumerate(value):
                walk(f"{path}.{index}", each)
        elif isinstance(value, int | float):
            found[path] = value

    walk("", dataclasses.asdict(record))
    return found


def test_every_time_of_a_prediction_is_the_walls() -> None:
    count = iter(range(2, 100))
    prediction = Prediction(
        **{
            field.name: float(next(count)) for field in dataclasses.fields(Prediction) if field.type.startswith("float")
        },
        stages=(StagePrediction(next(count), next(count), 0.5),),
        simulated=Simulated(*(float(next(count)) for _ in range(4))),
    )
    bounds = Bounds(latency_s=3.0, tpot_s=0.1)
    plan = dataclasses.replace(plan_of("rra"), prediction=prediction, bounds=profile_bounds(bounds, PACE))
    found = at_pace(plan, bounds, PACE)
    assert found.bounds == bounds
    assert found.schedule == plan.schedule
    assert found.prediction is not None
    before, after = numbers_of(prediction), numbers_of(found.prediction)
    factors = {path: after[path] / number for path, number in before.items()}
    for path, factor in factors.items():
        name = path.rpartition(".")[2]
        wanted = PACE if name.endswith("_s") else 1 / PACE if name == "throughput_rps" else 1.0
        assert factor == pytest.approx(wanted), path
    assert len(factors) == 18


def test_bounds_in_profile_time() -> None:
    bounds = Bounds(latency_s=3.0, ttft_s=1.0, tpot_s=0.1, latency_percentile=90.0)
    assert profile_bounds(bounds, 2.0) == Bounds(latency_s=1.5, ttft_s=0.5, tpot_s=0.05, latency_percentile=90.0)
    assert profile_bounds(Bounds(), 2.0) == Bounds()


def test_a_plan_at_the_profiles_own_pace_is_the_same() -> None:
    plan = plan_of("rra")
    assert at_pace(plan, None, 1) is plan
