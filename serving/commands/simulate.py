"""Runs a plan event by event on its workload, on another one, or on a trace, beside what the plan predicts.

usage: exegpt simulate PLAN.json [--workload=FILE --rate=REQUESTS_PER_SECOND --timeline=TRACE.json --report=FILE.html].
Without arrival times or --rate somebody always waits, which measures capacity. A workload with arrival times is
replayed as it was, --speed times as fast. --highest_rate looks for the highest rate of arrivals, the trace compressed
in time, at which every bound of the plan holds, waits included, and shows that run. The last line is SIMULATE {json}.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from serving import outputs
from serving.plans import plan_files, planning
from serving.progress import Display
from solver.facts.workload import Workload
from solver.plan.plan import Plan
from solver.report.page import write_report
from solver.report.pair_chart import Pair, pair_chart
from solver.report.plan_charts import plan_charts
from solver.report.timeline_chart import timeline_chart
from solver.simulate.events.arrivals import Demand, arriving, replay, saturated
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.rate import HighestRate, highest_rate
from solver.simulate.events.simulation import simulate
from solver.simulate.from_plan import conditions_of, machines_of

FLAGS = flags.FlagValues()
planning.define_inputs(FLAGS, plan=True)
flags.DEFINE_string("plan", None, "the same as PLAN", flag_values=FLAGS)
flags.DEFINE_integer(
    "requests", None, "how many to draw; 50 times the decode batch, at least 2000, if absent; a trace is run whole", 1,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "rate", None, "requests a second that arrive, a Poisson process; not with a trace", flag_values=FLAGS
)
flags.DEFINE_float("speed", 1.0, "compresses the arrival times of a trace", flag_values=FLAGS)
flags.DEFINE_bool(
    "highest_rate", False, "find the highest rate of arrivals at which the plan keeps its bounds", flag_values=FLAGS
)
flags.DEFINE_bool("saturate", False, "ignore arrival times: somebody always waits", flag_values=FLAGS)
flags.DEFINE_bool(
    "corrected", True, "hold the planned decode batch by correcting the encode batch, as the runner does",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("seed", 0, "of the draws", flag_values=FLAGS)
flags.DEFINE_string("timeline", None, "write a Chrome trace (ui.perfetto.dev opens it)", flag_values=FLAGS)
flags.DEFINE_string("report", None, "write charts: FILE.html or FILE.svg", flag_values=FLAGS)

_ROUNDS, _FEWEST = 50, 2000


def main(argv: list[str]) -> int:
    """Prints predicted beside simulated figures, and writes what is asked for."""
    plan = plan_files.read_plan(plan_files.given_plans(argv, FLAGS.plan, 1)[0])
    outputs.check_target("timeline", FLAGS.timeline)
    outputs.check_target("report", FLAGS.report, (".html", ".svg"))
    facts = planning.inputs_for(plan, FLAGS, unchanged=False)
    demand = _demand(plan, facts.workload)
    if FLAGS.highest_rate and not _bounded(plan):
        raise ValueError("highest_rate: the plan has no bound, so no rate is too high; plan with --latency_bound_s=..")
    # Programs of compiled shapes cost what the very batch is rounded up to.
    padded = any(profile.padded for profile in facts.profiles)
    by_kind = {profile.device_kind: profile for profile in facts.profiles}
    source = BatchSource(by_kind, facts.spec, facts.cluster, plan.buckets)
    conditions, machines = (
        conditions_of(plan),
        machines_of(plan, facts.spec, facts.cluster, facts.profiles, facts.workload),
    )

    def run(demand: Demand) -> Outcome:
        return simulate(
            plan.schedule,
            machines,
            demand,
            conditions,
            first_token=facts.spec.first_token,
            corrected=FLAGS.corrected,
            replicas=plan.replicas,
            fused=not padded,
            source=source if padded else None,
        )

    began_s = time.monotonic()
    found: HighestRate | None = None
    with Display() as display, display.working(f"simulating {len(demand)} requests"):
        if FLAGS.highest_rate:
            found = _highest_rate(plan, facts.workload, run)
        outcome = run(demand) if found is None or found.outcome is None else found.outcome
    seconds = time.monotonic() - began_s
    pairs = compared(plan, outcome)
    Console(highlight=False, soft_wrap=True).print(_table(pairs, f"{plan.schedule.policy} on {facts.workload.name}"))
    summary = _summary(outcome)
    if found is not None:
        summary |= _rates(plan, facts.workload, found)
        print(_words(summary, found))
    if FLAGS.timeline:
        outcome.timeline.write_chrome_trace(Path(FLAGS.timeline))
    if FLAGS.report:
        charts = [pair_chart(pairs, "simulated"), timeline_chart(outcome.timeline), *plan_charts(plan)]
        write_report(FLAGS.report, f"{facts.model_name}, simulated on {facts.workload.name}", charts)
    print(f"SIMULATE {json.dumps({**summary, 'seconds': round(seconds, 3)}, allow_nan=False)}")
    return 0


def _bounded(plan: Plan) -> bool:
    bounds = plan.bounds
    return bounds is not None and any(b is not None for b in (bounds.latency_s, bounds.ttft_s, bounds.tpot_s))


def _highest_rate(plan: Plan, workload: Workload, run: Callable[[Demand], Outcome]) -> HighestRate:
    """Of a trace, how many times as fast; of draws, requests per second. Latency counts from arrival."""
    bounds = plan.bounds
    assert bounds is not None, "a plan with bounds"
    conditions = dataclasses.replace(conditions_of(plan), clock="arrival")
    limits = [(bounds.latency_s, Outcome.latency_s), (bounds.ttft_s, Outcome.ttft_s), (bounds.tpot_s, Outcome.tpot_s)]

    def at(speed: float) -> Outcome:
        if _has_arrivals(workload):
            assert workload.trace is not None
            return run(replay(workload.trace, speed))
        return run(arriving(workload, _count(plan), speed, seed=FLAGS.seed))

    def holds(outcome: Outcome) -> bool:
        return all(limit is None or figure(outcome, conditions) <= limit for limit, figure in limits)

    capacity = plan.prediction.throughput_rps if plan.prediction else 1.0
    first = capacity / _mean_rate(workload) if _has_arrivals(workload) else 0.8 * capacity
    return highest_rate(at, holds, first=first)


def _has_arrivals(workload: Workload) -> bool:
    return workload.trace is not None and workload.trace.arrival_s is not None


def _mean_rate(workload: Workload) -> float:
    """Requests per second of a trace as it was recorded."""
    assert workload.trace is not None
    assert workload.trace.arrival_s is not None
    times_s = workload.trace.arrival_s
    if times_s[-1] <= times_s[0]:
        raise ValueError(f"highest_rate: all requests of {workload.name} arrive at once; use another workload")
    return float((len(times_s) - 1) / (times_s[-1] - times_s[0]))


def _rates(plan: Plan, workload: Workload, found: HighestRate) -> dict[str, object]:
    per_speed = _mean_rate(workload) if _has_arrivals(workload) else 1.0
    failed = found.failed * per_speed
    rates: dict[str, object] = {
        "highest_rate_rps": found.speed * per_speed,
        "failed_rate_rps": failed if math.isfinite(failed) else None,
    }
    return {**rates, "highest_speed": found.speed} if _has_arrivals(workload) else rates


def _words(summary: dict[str, object], found: HighestRate) -> str:
    if found.outcome is None:
        return f"no rate keeps the bounds: even {summary['failed_rate_rps']:.4g} requests/s breaks one"
    return (
        f"bounds hold, waits included, up to {summary['highest_rate_rps']:.4g} requests/s "
        f"({found.runs} runs of the event simulation)"
    )


def compared(plan: Plan, outcome: Outcome) -> list[Pair]:
    """Every figure that both know."""
    expected, conditions = plan.prediction, conditions_of(plan)
    if expected is None:
        raise ValueError("plan.prediction: null; flags made this plan, so nothing is predicted; run exegpt plan")
    arrival = conditions.clock == "arrival" and outcome.arrival_s is not None
    encode = dataclasses.replace(conditions, clock="encode")
    found: list[tuple[str, float | None, float, str]] = [
        ("throughput", expected.throughput_rps, outcome.throughput_rps, "req/s"),
        (f"latency p{conditions.latency_percentile:g}", expected.latency_s, outcome.latency_s(encode), "s"),
        (f"time to first token p{conditions.ttft_percentile:g}", expected.ttft_s, outcome.ttft_s(encode), "s"),
        (f"time per output token p{conditions.tpot_percentile:g}", expected.tpot_s, outcome.tpot_s(encode), "s"),
        ("rows that decode", expected.decode_batch, outcome.residents_mean, ""),
    ]
    if arrival:
        found += [
            (f"latency with wait p{conditions.latency_percentile:g}", expected.latency_with_wait_s,
             outcome.latency_s(conditions), "s"),
            (f"first token with wait p{conditions.ttft_percentile:g}", expected.ttft_with_wait_s,
             outcome.ttft_s(conditions), "s"),
        ]  # fmt: skip
    return [Pair(name, math.nan if value is None else value, actual, unit) for name, value, actual, unit in found]


def _demand(plan: Plan, workload: Workload) -> Demand:
    trace = workload.trace
    if FLAGS.rate is not None:
        if trace is not None and trace.arrival_s is not None:
            raise ValueError(f"rate: {FLAGS.rate} with a workload that has arrival times; use --speed or --saturate")
        return arriving(workload, _count(plan), FLAGS.rate, seed=FLAGS.seed)
    if trace is not None and not FLAGS.saturate and FLAGS.requests is None:
        return replay(trace, FLAGS.speed)
    return saturated(workload, _count(plan), FLAGS.seed)


def _count(plan: Plan) -> int:
    return FLAGS.requests or max(_FEWEST, _ROUNDS * plan.schedule.decode_batch * plan.replicas)


def _table(pairs: list[Pair], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in ("predicted", "simulated", "difference"):
        table.add_column(heading, justify="right")
    for pair in pairs:
        known = math.isfinite(pair.predicted)
        unit = f" {pair.unit}" if pair.unit else ""
        table.add_row(
            pair.name,
            f"{pair.predicted:.4g}{unit}" if known else "-",
            f"{pair.found:.4g}{unit}",
            f"{pair.error:+.2%}" if known and math.isfinite(pair.error) else "-",
        )
    return table


def _summary(outcome: Outcome) -> dict[str, object]:
    latencies = {"encode": outcome.latencies_s("encode")}
    if outcome.arrival_s is not None:
        latencies["arrival"] = outcome.latencies_s("arrival")
    found: dict[str, object] = {"requests": len(outcome.input_tokens), "throughput_rps": outcome.throughput_rps}
    for clock, values in latencies.items():
        ordered = sorted(values.tolist())
        for percent in (50, 99):
            found[f"latency_p{percent}_from_{clock}_s"] = ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
    return {
        **found,
        "residents": outcome.residents_mean,
        "peak_rows": outcome.peak_rows,
        "deferrals": outcome.deferrals,
        "preemptions": outcome.preemptions,
        "busy_share": [round(float(share), 6) for share in outcome.busy_share],
    }
