"""Checks everything that a plan says, with code that the search does not use.

usage: exegpt verify PLAN.json. Inputs are found by the names in the plan (or given by flags) and compared by their
digests. Memory is counted as the engine allocates it; throughput, latency and times of RRA are derived again in plain
loops, of other policies by the event simulation; then a scan looks for something better than the certificate allows.
Status 1 and one line naming the first field that does not hold. The last line is VERIFY {json}.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.plans import plan_files, planning
from serving.plans.planning import Facts
from serving.progress import Display
from solver.plan.plan import Plan
from solver.plan.under_way import works_apart
from solver.simulate.events.arrivals import saturated
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.simulation import simulate
from solver.simulate.from_plan import conditions_of, machines_of
from solver.simulate.points import Conditions
from solver.verify import checks
from solver.verify.checks import Check
from solver.verify.scan import scan
from solver.verify.stage_times import Setting, setting_of

FLAGS = flags.FlagValues()
planning.define_inputs(FLAGS, plan=True)
flags.DEFINE_string("plan", None, "the same as PLAN", flag_values=FLAGS)
flags.DEFINE_integer(
    "candidates",
    1000,
    "how many other schedules to try against the certificate (RRA; a twentieth where shapes are compiled); 0: none",
    0,
    flag_values=FLAGS,
)

# Second opinions of the event simulation, whose draws differ from the expectation.
_EVENTS_TOLERANCE = 0.05
_ROUNDS, _FEWEST = 50, 4000
_SLOWER = 20


def main(argv: list[str]) -> int:
    """Prints every check; returns 1 where one fails."""
    name = plan_files.given_plans(argv, FLAGS.plan, 1)[0]
    plan = plan_files.read_plan(name)
    began_s = time.monotonic()
    found, tried = _verify(plan)
    failed = [check for check in found if not check.holds]
    _print(found)
    summary = {"holds": not failed, "checks": len(found), "failed": [check.field for check in failed]}
    print(f"VERIFY {json.dumps({**summary, 'candidates': tried, 'seconds': round(time.monotonic() - began_s, 3)})}")
    if failed:
        others = ", ".join(check.field for check in failed[1:])
        more = f" (so do not {others})" if others else ""
        line = f"{name}: plan.{failed[0].field}: does not hold: {failed[0].found}{more}; plan again"
        print(f"exegpt: {line}", file=sys.stderr)
        return 1
    return 0


def _verify(plan: Plan) -> tuple[list[Check], int]:
    """Every check, and how many candidates were tried."""
    facts = planning.inputs_for(plan, FLAGS)
    for field in ("prediction", "bounds"):
        if getattr(plan, field) is None:
            raise ValueError(f"plan.{field}: null; flags made this plan, so it claims nothing; run exegpt plan")
    found = [Check("inputs", True, "model, cluster, profiles and workload are those of the plan")]
    found += checks.check_stages(plan, facts.spec, facts.cluster)
    if not all(check.holds for check in found):
        return found, 0
    setting = setting_of(facts.spec, facts.cluster, facts.profiles, facts.workload)
    found += checks.check_memory(plan, facts.spec, facts.cluster)
    found += checks.check_certificate(plan)
    found += _played_out(plan, facts)
    with Display() as display:
        if plan.schedule.policy == "rra":
            with display.working("deriving the prediction again"):
                found += checks.check_prediction(plan, facts.spec, setting, facts.workload)
            with display.working("looking for something better"):
                better = _better(plan, facts, setting)
            return found + better[0], better[1]
        with display.working("simulating"):
            found += _second_opinion(plan, facts)
    return found, 0


def _better(plan: Plan, facts: Facts, setting: Setting) -> tuple[list[Check], int]:
    """What a scan finds against the certificate's bound."""
    padded = any(profile.padded for profile in facts.profiles)
    if plan.certificate is None or not FLAGS.candidates or plan.cache_layout != "slots":
        return [], 0
    # Compiled shapes are sampled: slower by far, and good to a percent or two.
    most, tolerance = FLAGS.candidates, checks.EXACT
    if padded:
        most, tolerance = -(-most // _SLOWER), checks.SAMPLED
    best = scan(plan, facts.spec, facts.cluster, setting, facts.workload, checks.asked_of(plan), most)
    bound = plan.certificate.best_bound_rps
    allowed = bound * (1 + (plan.margins.profile_delta if plan.margins is not None else 0.0)) * (1 + tolerance)
    words = f"the best of {best.evaluated} others reaches {best.throughput_rps:.6g}, the bound says {bound:.6g}"
    if best.candidate is not None and best.layout is not None:
        stages = best.layout.stages
        words += (
            f" (B_E={best.candidate.encode_batch}, N_D={best.candidate.decode_iterations}, {len(stages)} stages of "
            f"tensor={stages[0].tensor}, {best.layout.replicas} copies)"
        )
    return [Check("certificate.best_bound_rps", best.throughput_rps <= allowed, words)], best.evaluated


def _played_out(plan: Plan, facts: Facts) -> list[Check]:
    """Figures that were simulated, from other draws; and the bounds against those that the plan states."""
    claimed = plan.prediction.simulated if plan.prediction is not None else None
    if claimed is None:
        return []
    outcome, conditions = _simulated(plan, facts, corrected=True, seed=1)
    own = {"throughput_rps": outcome.throughput_rps, "latency_s": outcome.latency_s(conditions)}
    found = [
        checks.near(f"prediction.simulated.{name}", getattr(claimed, name), value, _EVENTS_TOLERANCE)
        for name, value in own.items()
    ]
    for name in ("latency_s", "ttft_s", "tpot_s"):
        limit = getattr(plan.bounds, name)
        if limit is not None:
            value = getattr(claimed, name)
            found.append(Check(f"bounds.{name}", value <= limit, f"{value:.6g} of {limit:.6g} s, simulated"))
    return found


def _simulated(plan: Plan, facts: Facts, *, corrected: bool, seed: int = 0) -> tuple[Outcome, Conditions]:
    """At saturation, in compiled shapes where the profile is of such: programs cost what a batch is rounded up to."""
    conditions = dataclasses.replace(conditions_of(plan), clock="encode")
    padded = any(profile.padded for profile in facts.profiles)
    by_kind = {profile.device_kind: profile for profile in facts.profiles}
    requests = max(_FEWEST, _ROUNDS * plan.schedule.decode_batch * plan.replicas)
    outcome = simulate(
        plan.schedule,
        machines_of(plan, facts.spec, facts.cluster, facts.profiles, facts.workload),
        saturated(facts.workload, requests, seed),
        conditions,
        first_token=facts.spec.first_token,
        corrected=corrected,
        fused=not padded,
        replicas=plan.replicas,
        source=BatchSource(by_kind, facts.spec, facts.cluster, plan.buckets) if padded else None,
    )
    return outcome, conditions


def _second_opinion(plan: Plan, facts: Facts) -> list[Check]:
    """The event simulation.

    Where sides are apart, B_E is corrected to hold the decode batch, which where encode is the slower side costs a few
    percent that predictions leave out. So B_E is also held fixed, and the run nearer to what is claimed counts.
    """
    ways = (False, True) if works_apart(plan.schedule) else (False,)
    runs = [_simulated(plan, facts, corrected=corrected) for corrected in ways]
    conditions = runs[0][1]
    claimed = plan.prediction.throughput_rps if plan.prediction is not None else 0.0
    outcome = min((outcome for outcome, _ in runs), key=lambda each: abs(each.throughput_rps - claimed))
    # What is predicted is the latency of an answer as long as the percentile of answers, where one was drawn.
    latency_s = outcome.latency_of_output_s(facts.workload.output_percentile(conditions.latency_percentile))
    if not works_apart(plan.schedule) or math.isnan(latency_s):
        latency_s = outcome.latency_s(conditions)
    figures = {"throughput_rps": outcome.throughput_rps, "latency_s": latency_s}
    return checks.check_found(plan, figures, _EVENTS_TOLERANCE)


def _print(found: list[Check]) -> None:
    table = Table(title="Checks", title_justify="left")
    table.add_column("")
    table.add_column("field", no_wrap=True)
    table.add_column("found")
    for check in found:
        table.add_row("ok" if check.holds else "FAILS", check.field, check.found)
    Console(highlight=False, stderr=False).print(table)
