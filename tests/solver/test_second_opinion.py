"""Plans in compiled shapes are played out before they are given: what is simulated keeps the bound, whatever the closed
form of the mean phase says."""

from __future__ import annotations

import dataclasses
import math

import pytest

from solver.plan.bounds import Bounds
from solver.plan.plan import Plan
from solver.search.planner import Infeasible, PlanRequest, plan_schedule
from solver.search.second_opinion import played_out, shortfall
from solver.search.setting import Setting, limits_of, make_setting
from solver.verify import checks
from tests.conftest import FULL
from tests.solver import search_cases


def asked(seed: int, *, padded: bool, latency_s: float | None = None) -> PlanRequest:
    """One device, a margin of 5%, answers handed over a phase at a time."""
    request = search_cases.small_setting(seed, loose=True, padded=padded).request
    group = dataclasses.replace(request.cluster.groups[0], devices_per_island=1)
    return dataclasses.replace(
        request,
        cluster=dataclasses.replace(request.cluster, groups=(group,)),
        bounds=Bounds(latency_s=latency_s, latency_percentile=99.0),
        policies=("rra",),
        margin=0.05,
        cache_layout="slots",
        compaction="phase",
        delivery="phase",
    )


def latencies_s(plan: Plan) -> tuple[float, float]:
    """By the closed form, and as simulated."""
    assert plan.prediction is not None
    assert plan.prediction.simulated is not None
    return plan.prediction.latency_s, plan.prediction.simulated.latency_s


def test_what_is_simulated_keeps_the_bound() -> None:
    held_back = 0
    for seed in range(12 if FULL else 1):
        free = plan_schedule(asked(seed, padded=True)).plan
        bound_s = 0.85 * latencies_s(free)[0]
        try:
            plan = plan_schedule(asked(seed, padded=True, latency_s=bound_s)).plan
        except Infeasible:
            continue
        assert plan.margins is not None
        closed_s, simulated_s = latencies_s(plan)
        assert 1.05 * simulated_s <= bound_s * (1 + 1e-9)
        assert plan.margins.keep * closed_s <= bound_s * (1 + 1e-9)
        assert plan.margins.profile_delta == pytest.approx(0.05)
        held_back += plan.margins.fluctuation > 0
        assert all(check.holds for check in checks.check_certificate(plan))
        assert plan_schedule(asked(seed, padded=True, latency_s=bound_s)).plan.digest == plan.digest
    assert held_back, "the closed form of the mean phase is never short, so nothing was tested"


def test_a_plan_that_breaks_the_bound_when_it_is_played_out_is_seen() -> None:
    request = asked(0, padded=True)
    setting = make_setting(request)
    plan = plan_schedule(request).plan
    found = played_out(setting, plan)
    assert found is not None
    assert shortfall(setting, plan, found) is None
    closed_s, simulated_s = latencies_s(plan)
    for factor, broken in ((1.06, False), (1.04, True)):
        bounds = dataclasses.replace(request.bounds, latency_s=factor * simulated_s)
        short = shortfall(setting, dataclasses.replace(plan, bounds=bounds), found)
        assert short == (pytest.approx(max(0.0, simulated_s / closed_s - 1)) if broken else None)


def test_linear_profiles_and_bounds_from_arrival_are_not_played_out() -> None:
    plan = plan_schedule(asked(1, padded=False)).plan
    assert plan.prediction is not None
    assert plan.prediction.simulated is None
    assert plan.prediction.expected is plan.prediction
    setting = make_setting(asked(1, padded=True))
    arrival = dataclasses.replace(setting.request, bounds=Bounds(bound_from="arrival"))
    assert played_out(dataclasses.replace(setting, request=arrival), plan) is None


def test_both_shares_are_taken_off_every_limit() -> None:
    limits = limits_of(Bounds(latency_s=1.0, ttft_s=0.5), 0.1, 0.2)
    assert limits.latency_s == pytest.approx(1 / 1.32)
    assert limits.ttft_s == pytest.approx(0.5 / 1.32)
    assert math.isinf(limits.tpot_s)
    setting: Setting = make_setting(dataclasses.replace(asked(0, padded=False), fluctuation=0.2))
    assert setting.keep == pytest.approx(1.05 * 1.2)
