"""Plans for devices that take longer, or less long, than their profiles say: the pace, one factor on all times.

Such a plan is the one for the profiles under bounds that are shorter by the pace, with arrivals that come as much
faster; its times, and the bounds, are then those of the clock on the wall again.
"""

from __future__ import annotations

import dataclasses

from solver.plan.bounds import Bounds
from solver.plan.plan import Plan
from solver.plan.prediction import Prediction, Simulated, StagePrediction


def profile_bounds(bounds: Bounds, pace: float) -> Bounds:
    """Bounds on the wall's clock in the profiles' time."""
    return dataclasses.replace(
        bounds,
        latency_s=_times(bounds.latency_s, 1 / pace),
        ttft_s=_times(bounds.ttft_s, 1 / pace),
        tpot_s=_times(bounds.tpot_s, 1 / pace),
    )


def at_pace(plan: Plan, bounds: Bounds | None, pace: float) -> Plan:
    """A plan that was made under `profile_bounds(bounds, pace)`, on the wall's clock."""
    if pace == 1:
        return plan
    prediction = None if plan.prediction is None else _prediction(plan.prediction, pace)
    return dataclasses.replace(plan, bounds=bounds, prediction=prediction)


def _prediction(found: Prediction, pace: float) -> Prediction:
    return dataclasses.replace(
        found,
        throughput_rps=found.throughput_rps / pace,
        latency_s=found.latency_s * pace,
        encode_s=found.encode_s * pace,
        iteration_s=found.iteration_s * pace,
        latency_with_wait_s=_times(found.latency_with_wait_s, pace),
        ttft_s=_times(found.ttft_s, pace),
        ttft_with_wait_s=_times(found.ttft_with_wait_s, pace),
        tpot_s=_times(found.tpot_s, pace),
        period_s=_times(found.period_s, pace),
        decode_phase_s=_times(found.decode_phase_s, pace),
        stages=tuple(_stage(stage, pace) for stage in found.stages),
        simulated=None if found.simulated is None else _simulated(found.simulated, pace),
    )


def _stage(found: StagePrediction, pace: float) -> StagePrediction:
    return dataclasses.replace(found, encode_s=found.encode_s * pace, decode_s=found.decode_s * pace)


def _simulated(found: Simulated, pace: float) -> Simulated:
    times = found.latency_s * pace, found.ttft_s * pace, found.tpot_s * pace
    return Simulated(found.throughput_rps / pace, *times)


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor
