"""A plan played out before it is given: the event simulation of its very schedule, in compiled shapes.

Closed forms speak of the mean phase. In shapes that are padded, phases differ: how many prompts and which fall together
decides how many calls there are, and the run-time correction of B_E moves that. So a plan that sits at its bound by the
closed form may break it, by some percent to a fifth; then the search is asked again, limits lowered by what was short.
Profiles that are linear in tokens need none of this (goal A6 of the tests).
"""

from __future__ import annotations

import dataclasses
import math

from solver.plan.plan import Plan
from solver.plan.prediction import Simulated
from solver.search.setting import Setting
from solver.simulate.events.arrivals import saturated
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.simulation import simulate
from solver.simulate.from_plan import conditions_of, machines_of

_FEWEST, _BATCHES = 4000, 100
# A loop that takes more requests to fill is not played out: seconds would become minutes.
_MOST = 400_000


def played_out(setting: Setting, plan: Plan) -> Simulated | None:
    """What the simulation says of the plan at saturation; None where the closed form needs no second opinion."""
    request, schedule = setting.request, plan.schedule
    if setting.padding is None or request.bounds.bound_from != "encode":
        return None
    fill = 2 * schedule.encode_batch * math.ceil(setting.lengths.most_decode / schedule.decode_iterations)
    requests = fill + max(_FEWEST, _BATCHES * schedule.decode_batch)
    if requests * plan.replicas > _MOST:
        return None
    profiles = {profile.device_kind: profile for profile in request.profiles}
    conditions = dataclasses.replace(conditions_of(plan), clock="encode")
    outcome = simulate(
        schedule,
        machines_of(plan, request.spec, request.cluster, request.profiles, request.workload),
        saturated(request.workload, requests * plan.replicas),
        conditions,
        first_token=request.spec.first_token,
        fused=False,
        replicas=plan.replicas,
        source=BatchSource(profiles, request.spec, request.cluster, plan.buckets),
    )
    return Simulated(
        throughput_rps=outcome.throughput_rps,
        latency_s=outcome.latency_s(conditions),
        ttft_s=outcome.ttft_s(conditions),
        tpot_s=outcome.tpot_s(conditions),
    )


def shortfall(setting: Setting, plan: Plan, found: Simulated) -> float | None:
    """By which share limits must be lowered for the simulated figures to keep them; None where they are kept.

    The profile's own margin stays off the bounds, here too.
    """
    bounds, expected = plan.bounds, plan.prediction
    assert bounds is not None, "of a planned plan"
    assert expected is not None, "of a planned plan"
    broken, worst = False, 0.0
    for simulated_s, predicted_s, bound_s in (
        (found.latency_s, expected.latency_s, bounds.latency_s),
        (found.ttft_s, expected.ttft_s, bounds.ttft_s),
        (found.tpot_s, expected.tpot_s, bounds.tpot_s),
    ):
        if bound_s is None or not predicted_s:
            continue
        broken |= simulated_s * (1 + setting.margin) > bound_s
        worst = max(worst, simulated_s / predicted_s - 1)
    return worst if broken else None
