"""Throughput against the latency bound: the best plan under each of twenty bounds, as a table and a chart.

usage: exegpt pareto --model=opt-13b --cluster=one-a100 --workload=paper-t --report=front.svg. Bounds are spread evenly
in ratio between the tightest under which there is a plan and the latency of the fastest plan, unless --bounds names
them.
The last line is PARETO {json}.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from serving import outputs
from serving.flags import shared
from serving.plans import planning
from serving.progress import Display, SearchLine
from solver.report import words
from solver.report.front_chart import FrontPoint, pareto_chart
from solver.report.page import write_report

if TYPE_CHECKING:
    from solver.search.planner import Infeasible, Planned, PlanRequest

FLAGS = flags.FlagValues()
planning.define_inputs(FLAGS, plan=False)
planning.define_bounds(FLAGS, latency=False)
planning.define_search(FLAGS)
flags.DEFINE_list("bounds", None, "latency bounds in seconds, such as 1,2,5,inf", flag_values=FLAGS)
flags.DEFINE_integer("points", 20, "how many bounds, where --bounds names none", 2, flag_values=FLAGS)
flags.DEFINE_bool("each_policy", False, "a front for every policy beside the joint one", flag_values=FLAGS)
flags.DEFINE_string("output", None, "front to write as JSON; - is standard output", flag_values=FLAGS)
flags.DEFINE_string("report", None, "chart to write: FILE.html or FILE.svg", flag_values=FLAGS)

# Bisection towards the tightest bound, where the search does not name it.
_STEPS, _TIGHTEST = 10, 1e-4


def main(argv: list[str]) -> int:
    """Prints the table and writes what is asked for."""
    shared.refuse_arguments(argv)
    outputs.check_target("output", FLAGS.output)
    outputs.check_target("report", FLAGS.report, (".html", ".svg"))
    given = None if FLAGS.bounds is None else _given_bounds(FLAGS.bounds)
    request = planning.request_of(FLAGS)
    began_s = time.monotonic()
    with Display() as display:
        progress = SearchLine(display)
        bounds = given or _spread(request, FLAGS.points, progress)
        fronts = {"best of all": _front(request, bounds, progress)}
        if FLAGS.each_policy and len(request.policies) > 1:
            for policy in request.policies:
                fronts[policy] = _front(dataclasses.replace(request, policies=(policy,)), bounds, progress)
    seconds = round(time.monotonic() - began_s, 3)
    title = f"{request.model_name} on {request.cluster.name}, {request.workload.name}"
    _print(fronts["best of all"], title)
    points = {name: [dataclasses.asdict(point) for point in front] for name, front in fronts.items()}
    if FLAGS.report:
        start = "arrival" if request.bounds.bound_from == "arrival" else "the start of encoding"
        label = f"latency bound, seconds from {start}, p{request.bounds.latency_percentile:g} of output lengths"
        chart = pareto_chart(fronts, f"Throughput under a latency bound\n{title}", label)
        write_report(FLAGS.report, f"Throughput under a latency bound: {title}", [chart])
    if FLAGS.output:
        outputs.write_whole(FLAGS.output, json.dumps(points, indent=2, allow_nan=False) + "\n")
    print(f"PARETO {json.dumps({'front': points['best of all'], 'seconds': seconds}, allow_nan=False)}")
    return 0


def _given_bounds(names: list[str]) -> list[float | None]:
    """Rising; inf and none are no bound, and come last."""
    found: list[float] = []
    for name in names:
        try:
            value = math.inf if name == "none" else float(name)
        except ValueError:
            raise ValueError(f"bounds: {name!r} is no number; give seconds such as 1,2,5,inf") from None
        if not value > 0:
            raise ValueError(f"bounds: {name} is no bound; give seconds above 0")
        found.append(value)
    if not found:
        raise ValueError("bounds: none given; give seconds such as 1,2,5,inf")
    return [None if value == math.inf else value for value in sorted(set(found))]


def _spread(request: PlanRequest, points: int, progress: SearchLine) -> list[float | None]:
    """From the tightest bound with a plan to the latency of the plan without a bound; none last."""
    from solver.search.planner import Infeasible, plan_front

    fastest = plan_front(request, [None], progress)[0]
    if isinstance(fastest, Infeasible):
        raise fastest
    # Bounds leave room for the margin.
    margin = max(profile.spread for profile in request.profiles) if request.margin is None else request.margin
    high = _latency_s(fastest) * (1 + margin) * (1 + 1e-9)
    outcome = plan_front(request, [high * _TIGHTEST], progress)[0]
    low = high * _TIGHTEST
    if isinstance(outcome, Infeasible):
        low = outcome.nearest_latency_s or _tightest(request, low, high, progress)
    low = min(low * (1 + 1e-9), high)
    if points == 2 or low == high:
        return [high, None]
    inner = points - 1
    return [*(low * (high / low) ** (i / (inner - 1)) for i in range(inner - 1)), high, None]


def _tightest(request: PlanRequest, low: float, high: float, progress: SearchLine) -> float:
    """Bisection between a bound without a plan and one with a plan."""
    from solver.search.planner import Infeasible, plan_front

    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        if isinstance(plan_front(request, [middle], progress)[0], Infeasible):
            low = middle
        else:
            high = middle
    return high


def _latency_s(planned: Planned) -> float:
    """On the clock that the bound limits."""
    prediction, bounds = planned.plan.prediction, planned.plan.bounds
    assert prediction is not None, "a planned plan predicts"
    wait = bounds is not None and bounds.bound_from == "arrival" and prediction.latency_with_wait_s is not None
    latency = prediction.latency_with_wait_s if wait else prediction.latency_s
    assert latency is not None, "told apart above"
    return latency


def _front(request: PlanRequest, bounds: list[float | None], progress: SearchLine) -> list[FrontPoint]:
    from solver.search.planner import plan_front

    found = plan_front(request, bounds, progress)
    return [_point(bound, planned) for bound, planned in zip(bounds, found, strict=True)]


def _point(bound_s: float | None, found: Planned | Infeasible) -> FrontPoint:
    if isinstance(found, ValueError):
        return FrontPoint(bound_s, None)
    plan = found.plan
    assert plan.prediction is not None, "a planned plan predicts"
    best = plan.certificate.best_bound_rps if plan.certificate is not None else None
    return FrontPoint(bound_s, plan.prediction.throughput_rps, best, plan.schedule.policy, plan.schedule.encode_batch,
                      plan.schedule.decode_iterations, plan.prediction.latency_s)  # fmt: skip


def _print(front: list[FrontPoint], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("bound", "requests/s", "gap", "policy", "B_E", "N_D", "latency"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for point in front:
        bound = "none" if point.bound_s is None else words.seconds(point.bound_s)
        if point.throughput_rps is None:
            table.add_row(bound, "no plan", "", "", "", "", "")
            continue
        gap = "" if point.best_bound_rps is None else f"{max(0.0, point.best_bound_rps / point.throughput_rps - 1):.2%}"
        latency = "" if point.latency_s is None else words.seconds(point.latency_s)
        table.add_row(bound, f"{point.throughput_rps:.4g}", gap, point.policy or "", str(point.encode_batch or ""),
                      str(point.decode_iterations or ""), latency)  # fmt: skip
    Console(highlight=False, soft_wrap=True).print(table)
