"""Says in words why a plan is what it is, why it is no other, and what would make it faster.

usage: exegpt explain PLAN.json. The last two answers, which bound would double the throughput and what one more device
would bring, take searches of their own; --nosearch leaves them out. The last line is EXPLAIN {json}.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.plans import plan_files, planning
from serving.progress import Display, SearchLine
from solver.facts.cluster import Cluster, HostGroup
from solver.plan.bounds import Bounds
from solver.plan.plan import Plan
from solver.plan.schedule import EXECUTED_POLICIES, POLICIES
from solver.report import words

if TYPE_CHECKING:
    from solver.search.planner import PlanRequest

FLAGS = flags.FlagValues()
planning.define_inputs(FLAGS, plan=True)
flags.DEFINE_string("plan", None, "the same as PLAN", flag_values=FLAGS)
flags.DEFINE_bool("search", True, "plan again under other bounds and with one more device", flag_values=FLAGS)
flags.DEFINE_float("gap", 0.01, "of these searches", 0.0, flag_values=FLAGS)
flags.DEFINE_float("time_limit_s", 60.0, "of each of these searches", flag_values=FLAGS)

# The bound that doubles the throughput is found to within this share.
_PRECISION = 0.02
_MOST_STEPS = 12


def main(argv: list[str]) -> int:
    """Prints the explanation."""
    plan = plan_files.read_plan(plan_files.given_plans(argv, FLAGS.plan, 1)[0])
    console = Console(highlight=False, soft_wrap=True)
    for line in words.summary(plan):
        console.print(line, markup=False)
    _print_limits(console, plan)
    _print_runners_up(console, plan)
    answers: dict[str, object] = {"binding": words.binding(plan)}
    if FLAGS.search and plan.prediction is not None:
        request = _request(plan)
        with Display() as display:
            doubling = _doubling(plan, request, SearchLine(display))
            another = _one_more(plan, request, SearchLine(display))
        for title, (line, figures) in (("To double the throughput", doubling), ("One more device", another)):
            console.print(f"{title}: {line}", markup=False)
            answers |= figures
    print(f"EXPLAIN {json.dumps(answers, allow_nan=False)}")
    return 0


def _print_limits(console: Console, plan: Plan) -> None:
    """Every limit, and how much of it is used."""
    found = words.limits(plan)
    if not found:
        return
    table = Table(title="Why not more: the limits", title_justify="left")
    for heading in ("limit", "predicted", "allowed", "used"):
        table.add_column(heading, justify="left" if heading == "limit" else "right")
    for name, value, limit, unit in found:
        shown = (words.seconds(value), words.seconds(limit)) if unit == "s" else (words.size(value), words.size(limit))
        table.add_row(name, *shown, f"{value / limit:.1%}")
    console.print(table)


def _print_runners_up(console: Console, plan: Plan) -> None:
    """Why not the others."""
    if not plan.runners_up:
        console.print("no other policy was searched")
        return
    table = Table(title="Why not the others", title_justify="left")
    for heading in ("policy", "requests/s", "latency", "B_E", "N_D", "why not"):
        table.add_column(heading, justify="left" if heading in ("policy", "why not") else "right")
    if plan.prediction is not None:
        schedule = plan.schedule
        table.add_row(
            f"{schedule.policy} (this plan)", f"{plan.prediction.throughput_rps:.4g}",
            words.seconds(plan.prediction.latency_s), str(schedule.encode_batch), str(schedule.decode_iterations), "",
        )  # fmt: skip
    for other in plan.runners_up:
        table.add_row(
            other.policy,
            "-" if other.throughput_rps is None else f"{other.throughput_rps:.4g}",
            "-" if other.latency_s is None else words.seconds(other.latency_s),
            "-" if other.encode_batch is None else str(other.encode_batch),
            "-" if other.decode_iterations is None else str(other.decode_iterations),
            other.reason,
        )
    console.print(table)


def _request(plan: Plan) -> PlanRequest:
    """The question that the plan answers, asked again."""
    from solver.search.planner import PlanRequest

    facts = planning.inputs_for(plan, FLAGS)
    searched = {plan.schedule.policy, *(other.policy for other in plan.runners_up)}
    return PlanRequest(
        spec=facts.spec,
        model_name=facts.model_name,
        cluster=facts.cluster,
        profiles=facts.profiles,
        workload=facts.workload,
        bounds=plan.bounds or Bounds(),
        policies=tuple(p for p in POLICIES if p in searched) or EXECUTED_POLICIES,
        gap=FLAGS.gap,
        time_limit_s=FLAGS.time_limit_s,
        margin=plan.margins.profile_delta if plan.margins is not None else None,
        fluctuation=plan.margins.fluctuation if plan.margins is not None else 0.0,
        dtype=plan.dtype,
        cache_dtype=plan.cache_dtype,
        overflow=plan.margins.overflow if plan.margins is not None else 1e-3,
    )


def _doubling(plan: Plan, request: PlanRequest, progress: SearchLine) -> tuple[str, dict[str, object]]:
    """The least latency bound that doubles the throughput, found by bisection over searches."""
    assert plan.prediction is not None, "checked before"
    if request.bounds.latency_s is None:
        return f"there is no latency bound to relax; {words.binding(plan)}", {"doubling_latency_bound_s": None}
    wanted = 2 * plan.prediction.throughput_rps
    free = _throughput(request, None, progress)
    if free is None or free < wanted:
        reached = f"without a latency bound it reaches {free:.4g} requests a second" if free else "nothing is feasible"
        return (
            f"no latency bound does; {reached}, {(free or 0) / plan.prediction.throughput_rps:.3g} times this plan's",
            {"doubling_latency_bound_s": None, "unbounded_rps": free},
        )
    high = request.bounds.latency_s
    for _ in range(_MOST_STEPS):
        high *= 2
        if (_throughput(request, high, progress) or 0.0) >= wanted:
            break
    low = high / 2
    for _ in range(_MOST_STEPS):
        if high / low <= 1 + _PRECISION:
            break
        middle = (low * high) ** 0.5
        if (_throughput(request, middle, progress) or 0.0) >= wanted:
            high = middle
        else:
            low = middle
    return (
        f"a latency bound of {words.seconds(high)} would, in place of {words.seconds(request.bounds.latency_s)}",
        {"doubling_latency_bound_s": high, "unbounded_rps": free},
    )


def _one_more(plan: Plan, request: PlanRequest, progress: SearchLine) -> tuple[str, dict[str, object]]:
    """The same search on a cluster with another device, in a host of its own."""
    from solver.search.planner import Infeasible, plan_schedule

    assert plan.prediction is not None, "checked before"
    larger = one_more_device(request.cluster)
    kind = larger.groups[-1].kind
    try:
        found = plan_schedule(dataclasses.replace(request, cluster=larger), progress).plan
    except Infeasible as error:
        return f"brings nothing: {error}", {"one_more_device_rps": None}
    assert found.prediction is not None, "a planned plan predicts"
    rate = found.prediction.throughput_rps
    gain = rate / plan.prediction.throughput_rps - 1
    return (
        f"another {kind}, in a host of its own, brings {rate:.4g} requests a second, {gain:+.1%} "
        f"({found.schedule.policy}, {words.placement(found)})",
        {"one_more_device_rps": rate},
    )


def one_more_device(cluster: Cluster) -> Cluster:
    """The cluster with one device more of its last kind."""
    group = HostGroup(cluster.groups[-1].kind, 1, 1, 1)
    return dataclasses.replace(cluster, name=f"{cluster.name}+1", groups=(*cluster.groups, group))


def _throughput(request: PlanRequest, latency_s: float | None, progress: SearchLine) -> float | None:
    from solver.search.planner import Infeasible, plan_schedule

    bounds = dataclasses.replace(request.bounds, latency_s=latency_s)
    try:
        prediction = plan_schedule(dataclasses.replace(request, bounds=bounds), progress).plan.prediction
    except Infeasible:
        return None
    assert prediction is not None, "a planned plan predicts"
    return prediction.throughput_rps
