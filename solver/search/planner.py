"""The planner: from model, cluster, profiles, workload and bounds to the Plan with the highest throughput.

One question in, one Plan out, or one line that says which limit stands in the way.

    Setting -> the search of each policy -> the best of all -> Certificate, runners-up, margins -> Plan
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

from solver.plan.certificate import Certificate, Ended
from solver.plan.plan import Plan
from solver.plan.prediction import Simulated
from solver.plan.schedule import Policy
from solver.search.assemble import plan_of, policies_of, runner_up
from solver.search.baseline_search import search_baseline
from solver.search.device_time import device_time_rps
from solver.search.outcome import Best, Outcome, Report, Tally
from solver.search.proof.infeasible import Relaxed
from solver.search.request import Infeasible, Planned, PlanRequest, Progress
from solver.search.rra_search import search_rra, why_not_rra
from solver.search.second_opinion import played_out, shortfall
from solver.search.setting import Setting, limits_of, make_setting
from solver.search.uniform import Placed
from solver.search.waa_search import search_waa

__all__ = ["Infeasible", "PlanRequest", "Planned", "Progress", "plan_front", "plan_schedule"]

Search = Callable[[Setting, Policy, Tally, Report], Outcome]


def _search_rra(setting: Setting, policy: Policy, tally: Tally, report: Report) -> Outcome:
    return search_rra(setting, tally, report)


SEARCHES: Mapping[Policy, Search] = {
    "rra": _search_rra,
    **dict.fromkeys(("waa-c", "waa-m", "waa", "disaggregated"), search_waa),
    **dict.fromkeys(("static", "dsi", "iteration", "chunked"), search_baseline),
}


# Whole prompts, on the devices that decode.
ENCODER_POLICIES: tuple[Policy, ...] = ("rra", "static", "dsi", "iteration")
# Searches with lowered limits where the first plan did not keep the bounds when it was played out; and how finely.
_OPINIONS, _LEAST_MORE = 6, 0.02


def plan_schedule(request: PlanRequest, progress: Progress | None = None) -> Planned:
    """The best plan of the policies asked for.

    Raises:
      Infeasible: none keeps every bound.
      ValueError: an input is no good.
    """
    setting = make_setting(request)
    planned, short = _opinion(setting, progress)
    if short is not None:
        setting, planned = _held_back(setting, planned, short, progress)
    simulated = planned.plan.prediction.simulated if planned.plan.prediction is not None else None
    whole = _planned(setting, progress, time.monotonic(), with_margins=True)
    return whole if simulated is None else dataclasses.replace(whole, plan=_with(whole.plan, simulated))


def _opinion(setting: Setting, progress: Progress | None) -> tuple[Planned, float | None]:
    """The best plan in this setting, played out; and by how much limits must be lowered for its like to keep them."""
    planned = _planned(setting, progress, time.monotonic(), with_margins=False)
    simulated = played_out(setting, planned.plan)
    if simulated is None:
        return planned, None
    short = shortfall(setting, planned.plan, simulated)
    return dataclasses.replace(planned, plan=_with(planned.plan, simulated)), short


def _held_back(setting: Setting, planned: Planned, short: float, progress: Progress | None) -> tuple[Setting, Planned]:
    """Of searches with lowered limits the plan that answers most and keeps the bounds when it is played out.

    Raises:
      Infeasible: none does.
    """
    low, high, tried = 0.0, math.inf, max(short, _LEAST_MORE)
    best: tuple[Setting, Planned] | None = None
    for _ in range(_OPINIONS):
        request = dataclasses.replace(setting.request, fluctuation=tried)
        under = dataclasses.replace(setting, request=request, limits=limits_of(request.bounds, setting.margin, tried))
        try:
            planned, more = _opinion(under, progress)
        except Infeasible:
            if best is not None:
                break
            raise
        if more is None:
            high = tried
            if best is None or _simulated_rps(planned) > _simulated_rps(best[1]):
                best = under, planned
        else:
            low = tried
        tried = (low + high) / 2 if math.isfinite(high) else max(more or 0.0, tried + _LEAST_MORE)
        if high - low < _LEAST_MORE:
            break
    if best is None:
        raise Infeasible(
            f"no plan keeps every bound when it is played out, limits lowered by up to {low:.0%}; relax a bound"
        )
    return best


def _simulated_rps(planned: Planned) -> float:
    prediction = planned.plan.prediction
    assert prediction is not None, "a planned plan predicts"
    return prediction.expected.throughput_rps


def _with(plan: Plan, simulated: Simulated) -> Plan:
    assert plan.prediction is not None, "a planned plan predicts"
    return dataclasses.replace(plan, prediction=dataclasses.replace(plan.prediction, simulated=simulated))


def _planned(setting: Setting, progress: Progress | None, began_s: float, *, with_margins: bool) -> Planned:
    """The best plan in this setting."""
    request = setting.request
    policies = policies_of(request.policies)
    deadline_s = math.inf if request.time_limit_s is None else began_s + request.time_limit_s
    tally = Tally(began_s, deadline_s)
    report: Report = progress if progress is not None else _silent
    outcomes = {policy: _searched(setting, policy, tally, report) for policy in policies}
    chosen = _best(outcomes)
    if chosen is None and tally.left_s <= 0:
        raise Infeasible(f"time_limit_s: {request.time_limit_s:g} ended before a plan was found; give more")
    if chosen is None:
        raise _infeasible(setting, outcomes)
    limit: Ended = "time-limited" if tally.left_s <= 0 else "node-limited"
    certificate = Certificate.of(
        objective_rps=chosen.rps,
        best_bound_rps=min(device_time_rps(setting), max(outcome.bound_rps for outcome in outcomes.values())),
        allowed_gap=request.gap,
        nodes=tally.nodes,
        evaluated=tally.evaluated,
        limit=limit,
        scope="; ".join(f"{policy}: {outcome.proven_over or 'nothing'}" for policy, outcome in outcomes.items()),
    )
    others = tuple(
        runner_up(policy, outcome, chosen, setting) for policy, outcome in outcomes.items() if policy != chosen.policy
    )
    plan = plan_of(setting, chosen, certificate, others, with_margins=with_margins)
    log = tuple(f"{policy}: searched {outcome.proven_over}" for policy, outcome in outcomes.items())
    return Planned(plan, time.monotonic() - began_s, tuple(tally.trace), log)


def _searched(setting: Setting, policy: Policy, tally: Tally, report: Report) -> Outcome:
    if setting.request.spec.encoder_layers and policy not in ENCODER_POLICIES:
        return Outcome(
            None, 0.0, "", reason=f"not planned for {setting.request.spec.family}, whose encoder stands apart"
        )
    return SEARCHES[policy](setting, policy, tally, report)


def plan_front(
    request: PlanRequest, latency_bounds_s: Sequence[float | None], progress: Progress | None = None
) -> tuple[Planned | Infeasible, ...]:
    """The best plan under each latency bound, other bounds kept.

    Costs, moments and shapes of phases are worked out once; margins, which take searches of their own, are left out.
    """
    setting = make_setting(request)
    found: list[Planned | Infeasible] = []
    for latency_s in latency_bounds_s:
        asked = dataclasses.replace(request, bounds=dataclasses.replace(request.bounds, latency_s=latency_s))
        limits = limits_of(asked.bounds, setting.margin, request.fluctuation)
        under = dataclasses.replace(setting, request=asked, limits=limits)
        try:
            found.append(_planned(under, progress, time.monotonic(), with_margins=False))
        except Infeasible as error:
            found.append(error)
    return tuple(found)


def _silent(nodes: int, incumbent_rps: float | None, bound_rps: float | None) -> None:
    pass


def _best(outcomes: Mapping[Policy, Outcome]) -> Best | None:
    found = [outcome.best for outcome in outcomes.values() if outcome.best is not None]
    return max(found, key=lambda best: best.rps) if found else None


def _infeasible(setting: Setting, outcomes: Mapping[Policy, Outcome]) -> Infeasible:
    """One line: which limit binds, on which device, and the nearest that works."""
    searched = ", ".join(outcomes)
    if "rra" not in outcomes:
        return Infeasible(f"no plan of policies {searched} keeps every bound; add rra to --policies, or relax a bound")
    placed, relaxed = why_not_rra(setting)
    text = "; ".join(_words(setting, placed, each) for each in relaxed if each.binds or each.nearest is not None)
    nearest = next((each.nearest for each in relaxed if each.name == "latency_s"), None)
    return Infeasible(
        f"no plan of policies {searched} keeps every bound: {text or 'no candidate could be evaluated'}",
        None if nearest is None else nearest * setting.keep,
    )


_FLAGS = {"latency_s": "latency_bound_s", "ttft_s": "ttft_bound_s", "tpot_s": "tpot_bound_s"}


def _words(setting: Setting, placed: Placed, found: Relaxed) -> str:
    if found.name == "memory":
        stage = found.stage or 0
        kind, count = placed.kinds[stage], len(setting.cluster.devices())
        share = found.nearest or found.alone or 1.0
        if share <= 1:
            return f"memory does not bind ({share:.0%} of a {kind})"
        return (
            f"memory binds: stage {stage} needs {share:.3g} times what a {kind} may fill; about "
            f"{math.ceil(share * count)} devices in place of {count} would hold it"
        )
    keep = setting.keep
    asked = found.limit * keep
    flag = _FLAGS[found.name]
    if found.nearest is None:
        return f"{flag}={asked:.4g} cannot be kept together with the other bounds"
    verb = "binds" if found.binds else "binds together with the other bounds"
    return f"{flag}={asked:.4g} {verb}, the nearest that works is {math.ceil(found.nearest * keep * 1e4) / 1e4:.4f}"
