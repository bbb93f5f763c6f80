"""Finds the schedule with the highest throughput under the bounds, and proves how far from the best it can be.

usage: exegpt plan --model=llama-2-7b --cluster=one-a100 --workload=paper-t --latency_bound_s=10 --output=plan.json.
The plan is one JSON file, the same bytes for the same inputs unless --time_limit_s cut the search short; `-` writes it
to standard output. The last line there is PLAN {json}. Status 2 and one line: no plan keeps the bounds, and why.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from serving import outputs
from serving.flags import shared
from serving.plans import planning
from serving.progress import Display, SearchLine
from solver.plan.plan import Plan
from solver.report import words

if TYPE_CHECKING:
    from solver.search.planner import Planned

FLAGS = flags.FlagValues()
planning.define_inputs(FLAGS, plan=False)
planning.define_bounds(FLAGS)
planning.define_search(FLAGS)
flags.DEFINE_string("output", None, "plan to write; - is standard output; none if absent", flag_values=FLAGS)
flags.DEFINE_string("report", None, "also write charts of the plan: FILE.html or FILE.svg", flag_values=FLAGS)

EXIT_INFEASIBLE = 2


def main(argv: list[str]) -> int:
    """Writes the plan; returns 2 where there is none."""
    shared.refuse_arguments(argv)
    outputs.check_target("output", FLAGS.output)
    outputs.check_target("report", FLAGS.report, (".html", ".svg"))
    request = planning.request_of(FLAGS)
    from solver.search.planner import Infeasible, plan_schedule

    with Display() as display:
        try:
            planned = plan_schedule(request, SearchLine(display))
        except Infeasible as error:
            print(f"exegpt: {error}", file=sys.stderr)
            return EXIT_INFEASIBLE
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in (*planned.log, *words.summary(planned.plan)):
        console.print(line, markup=False)
    if FLAGS.report:
        from solver.report.page import write_report
        from solver.report.plan_charts import plan_charts

        write_report(
            FLAGS.report, f"Plan for {request.model_name}", plan_charts(planned.plan), words.summary(planned.plan)
        )
    if FLAGS.output:
        outputs.write_whole(FLAGS.output, planned.plan.to_json())
    print(f"PLAN {json.dumps(summary(planned))}")
    return 0


def summary(planned: Planned) -> dict[str, object]:
    """The last line: what a script wants to know."""
    plan = planned.plan
    return {**_controls(plan), **_figures(plan), "seconds": round(planned.seconds, 3)}


def _controls(plan: Plan) -> dict[str, object]:
    schedule = plan.schedule
    stages = [
        {"role": s.role, "layers": list(s.layers), "devices": list(s.devices), "tensor": s.tensor}
        for s in schedule.stages
    ]
    controls = ("policy", "encode_batch", "decode_iterations", "decode_batch", "micro_batch", "encode_micro_batch")
    found: dict[str, object] = {name: getattr(schedule, name) for name in (*controls, "max_rows")}
    if schedule.token_budget:
        found["token_budget"] = schedule.token_budget
    if schedule.policy == "disaggregated":
        found |= {name: getattr(schedule, name) for name in ("encode_replicas", "decode_replicas")}
    return {**found, "replicas": plan.replicas, "stages": stages}


def _figures(plan: Plan) -> dict[str, object]:
    prediction, certificate, bounds = plan.prediction, plan.certificate, plan.bounds
    assert prediction is not None, "a planned plan predicts"
    assert bounds is not None, "a planned plan has bounds"
    arrival = bounds.bound_from == "arrival"
    return {
        "throughput_rps": prediction.throughput_rps,
        "latency_s": prediction.latency_with_wait_s if arrival else prediction.latency_s,
        "ttft_s": prediction.ttft_with_wait_s if arrival else prediction.ttft_s,
        "tpot_s": prediction.tpot_s,
        "bound_from": bounds.bound_from,
        "bound_gap": certificate.gap if certificate else None,
        "best_bound_rps": certificate.best_bound_rps if certificate else None,
        "proven": certificate is not None and certificate.ended == "proven",
        "nodes": certificate.nodes if certificate else None,
        "evaluated": certificate.evaluated if certificate else None,
        "digest": plan.digest,
    }
