"""What a drift of the traffic asks for: keep the schedule, adjust it within the plan's margins, or plan again.

A pure function of the plan, of what is in force, and of the estimate. Within the margins the planner has worked out
controls for every drift that it tried (`solver.search.margins`); of those for lengths at least as long as the estimate,
the nearest are taken, so that bounds that they keep are kept: their N_D, and their decode batch, which B_E follows from
(Little's law). Where a plan promises nothing (flags made it), its own decode batch is held. No drift is believed that
its own error explains.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from exegpt_jax.runner.estimate import Estimate
from solver.plan.bands import planned_bands
from solver.plan.certificate import Margins
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

# Rows that must have ended before the estimate counts.
LEAST_REQUESTS = 64
# Standard errors by which a mean must have moved; and those taken off a drift that is held against the margins, where
# a false alarm costs no more than another plan for what was seen.
SURE, LIKELY = 3.0, 1.0
# Drifts up to this ask for no new plan, however narrow the margins are.
LEAST_MARGIN = 0.05
# A drift that far behind an entry of the table is still served by it, and a mean that moved by less has not moved.
_TOLERANCE = 0.02
# Share of requests that may be longer than anything seen.
_MOST_UNSEEN = 0.05


@dataclasses.dataclass(frozen=True)
class Means:
    """What a schedule was chosen for.

    Attributes:
      input_tokens, output_tokens: mean lengths; None where nobody knows.
      pace: of the devices, in times of the profile's (`exegpt_jax.runner.paces`).
    """

    input_tokens: float | None = None
    output_tokens: float | None = None
    pace: float = 1.0


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, and the numbers that caused it.

    Attributes:
      kind: "keep"; "adjust": run `schedule` from the next phase on; "beyond": the margins are left, so plan again, and
        run `schedule` meanwhile.
      schedule: in force from now on.
      means: that it is for.
      reason: one line.
      input_tokens, output_tokens: estimated means; 0 where nothing is known.
      input_error, output_error: their standard errors.
      input_drift, output_drift: relative to what the plan was made for; None where the plan does not say.
      margin_used: share of the margins that the drifts, their errors taken off, use up; beyond 1 they are left.
      requests: faded count of rows behind the estimate.
      pace: of the devices; None where it is not known.
    """

    kind: Literal["keep", "adjust", "beyond"]
    schedule: Schedule
    means: Means
    reason: str
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    input_error: float = 0.0
    output_error: float = 0.0
    input_drift: float | None = None
    output_drift: float | None = None
    margin_used: float = 0.0
    requests: float = 0.0
    pace: float | None = None


def planned_means(plan: Plan) -> Means:
    """What the plan was made for, as far as it says."""
    margins = plan.margins
    return Means() if margins is None else Means(margins.mean_input_tokens, margins.mean_output_tokens)


def decide(plan: Plan, in_force: Schedule, means: Means, estimate: Estimate | None) -> Decision:
    """The decision at a phase boundary.

    Args:
      plan: whose programs are compiled.
      in_force: the plan's schedule, or what was decided since.
      means: that `in_force` was chosen for.
      estimate: of lengths now; None where nothing was seen.
    """
    if estimate is None or estimate.requests < LEAST_REQUESTS or estimate.unseen > _MOST_UNSEEN:
        return Decision("keep", in_force, means, "too few requests have ended")
    now = Means(estimate.inputs.mean, estimate.outputs.mean, means.pace)
    assert now.input_tokens is not None
    assert now.output_tokens is not None
    input_error = estimate.inputs.std / estimate.prompts**0.5
    planned = planned_means(plan)
    input_drift, output_drift = _drift(now.input_tokens, planned.input_tokens), None
    output_drift = _drift(now.output_tokens, planned.output_tokens)
    used = 0.0
    if plan.margins is not None:
        used = _used(plan.margins, input_drift, output_drift, input_error, estimate.output_error)
    decision = Decision(
        "keep", in_force, means, "", now.input_tokens, now.output_tokens, input_error, estimate.output_error,
        input_drift, output_drift, used, estimate.requests,
    )  # fmt: skip
    moved = _moved(now.output_tokens, means.output_tokens, estimate.output_error)
    moved |= _moved(now.input_tokens, means.input_tokens, input_error)
    if used <= 1 and not moved:
        return dataclasses.replace(decision, reason="the means have not moved by more than their errors")
    schedule = _schedule(plan, estimate, input_drift or 0.0, output_drift)
    if used > 1:
        reason = f"the drift takes {used:.2f} times the margins"
        return dataclasses.replace(decision, kind="beyond", schedule=schedule, means=now, reason=reason)
    if controls(schedule) == controls(in_force):
        return dataclasses.replace(decision, reason="the controls in force are the best within the margins")
    reason = "within the margins" if plan.margins is not None else "no margins are known; the decode batch is held"
    return dataclasses.replace(decision, kind="adjust", schedule=schedule, means=now, reason=reason)


def _drift(now: float, planned: float | None) -> float | None:
    return None if planned is None else now / planned - 1


def _moved(now: float, before: float | None, error: float) -> bool:
    return before is None or abs(now - before) > max(SURE * error, _TOLERANCE * before)


def _used(
    margins: Margins, input_drift: float | None, output_drift: float | None, input_error: float, output_error: float
) -> float:
    """Shares of both margins, added: what each would stand alone, both do not stand together."""
    used = 0.0
    for drift, error, planned, low, high in (
        (input_drift, input_error, margins.mean_input_tokens, margins.input_drift_low, margins.input_drift_high),
        (output_drift, output_error, margins.mean_output_tokens, margins.output_drift_low, margins.output_drift_high),
    ):
        if drift is None or planned is None:
            continue
        likely = max(0.0, abs(drift) - LIKELY * error / planned)
        used += likely / max(high if drift > 0 else -low, LEAST_MARGIN)
    return used


def controls(schedule: Schedule) -> tuple[int, int, int]:
    """What is adjusted: B_E, N_D and B_D; bands follow."""
    return schedule.encode_batch, schedule.decode_iterations, schedule.decode_batch


def _schedule(plan: Plan, estimate: Estimate, input_drift: float, output_drift: float | None) -> Schedule:
    """The best of the plan's programs for these lengths."""
    planned = plan.schedule
    if planned.policy != "rra":
        return planned  # the others have no controls that follow lengths
    iterations, held = _table(plan, output_drift)
    margins = plan.margins
    if margins is not None and input_drift > max(margins.input_drift_high, LEAST_MARGIN):
        # A phase then encodes as many tokens as planned.
        held /= 1 + input_drift
    periods = max(estimate.mean_periods(iterations), 1.0 / planned.most_rows)
    batch, rows = (min(max(1, round(value)), planned.most_rows) for value in (held / periods, held))
    bands = planned_bands(
        batch, rows, planned.most_rows, estimate.inputs.mean, estimate.mean_input2, plan.max_prompt_tokens
    )
    return dataclasses.replace(
        planned, encode_batch=batch, decode_iterations=iterations, decode_batch=rows, bands=bands
    )


def _table(plan: Plan, output_drift: float | None) -> tuple[int, float]:
    """N_D and B_D for a drift: of the entries that are at least as long, the nearest; else the longest."""
    own = plan.schedule.decode_iterations, float(plan.schedule.decode_batch)
    if plan.margins is None or output_drift is None:
        return own
    margins = plan.margins
    entries = {0.0: own}
    for each in margins.neighbours:
        within = margins.output_drift_low <= each.output_drift <= margins.output_drift_high
        if within and each.decode_iterations and each.decode_batch:
            entries[each.output_drift] = each.decode_iterations, float(each.decode_batch)
    long_enough = [drift for drift in entries if drift >= output_drift - _TOLERANCE]
    return entries[min(long_enough) if long_enough else max(entries)]
