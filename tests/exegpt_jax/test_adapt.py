"""Decisions about drift, as a pure function: what is kept, adjusted and planned again, and with which controls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exegpt_jax.runner.adapt import Decision, Means, decide, planned_means
from exegpt_jax.runner.estimate import Estimate
from solver.facts.histogram import Histogram
from solver.plan.certificate import Margins, Neighbour
from solver.plan.plan import Plan
from tests.exegpt_jax.runner_bench import plan_of

N = 5
MEAN_INPUT, MEAN_OUTPUT = 20.0, 31.0  # every answer of 31 tokens lives ceil(30 / 5) = 6 phases


def estimate(output: float, inputs: float = MEAN_INPUT, error: float = 0.1, requests: float = 200.0) -> Estimate:
    """All answers of one length, or of the two whole ones around it."""
    lengths = np.array([int(output), int(output) + 1])
    share = np.array([1 - output % 1, output % 1])
    kept = share > 0
    prompts = Histogram(np.array([int(inputs) - 1, int(inputs) + 1]), np.array([0.5, 0.5]))
    return Estimate(prompts, Histogram(lengths[kept], share[kept]), error, 0.0, requests, 400.0)


def planned(margins: bool = True) -> Plan:
    """B_E 4, B_D 24; longer answers want fewer rows or iterations, shorter ones others."""
    plan = plan_of("rra", encode_batch=4, iterations=N, rows=30, decode_batch=24)
    neighbours = (
        Neighbour(-0.3, 5, 4, 9.0, 25),
        Neighbour(-0.1, 5, N, 8.0, 23),
        Neighbour(0.1, 4, N - 1, 6.0, 22),
        Neighbour(0.2, 3, N - 1, 5.0, 20),
        Neighbour(0.5, 1, 1, 2.0, 30),  # beyond the margins: not for these programs
    )
    found = Margins(
        0.0, -0.3, 0.2, MEAN_OUTPUT * 0.7, MEAN_OUTPUT * 1.2, 1e-3, neighbours, MEAN_INPUT, -0.5, 0.1
    )  # fmt: skip
    return dataclasses.replace(plan, margins=found if margins else None)


def decided(plan: Plan, given: Estimate | None) -> Decision:
    return decide(plan, plan.schedule, planned_means(plan), given)


def controls(decision: Decision) -> tuple[int, int, int]:
    schedule = decision.schedule
    return schedule.encode_batch, schedule.decode_iterations, schedule.decode_batch


def test_nothing_is_done_without_knowledge_or_cause() -> None:
    plan = planned()
    for given in (None, estimate(45, requests=20), dataclasses.replace(estimate(45), unseen=0.3)):
        assert decided(plan, given).kind == "keep"
    assert decided(plan, estimate(MEAN_OUTPUT)).kind == "keep"
    # 10% longer, but so uncertain that it says nothing.
    kept = decided(plan, estimate(MEAN_OUTPUT * 1.1, error=1.5))
    assert kept.kind == "keep"
    assert kept.schedule is plan.schedule
    assert kept.output_drift == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("drift", "iterations", "rows"),
    [
        (0.06, N - 1, 22),
        (0.11, N - 1, 22),
        (0.15, N - 1, 20),
        (0.19, N - 1, 20),
        (-0.05, N, 24),
        (-0.2, N, 23),
        (-0.3, 4, 25),
    ],
)
def test_within_the_margins_the_nearest_longer_entry_counts(drift: float, iterations: int, rows: int) -> None:
    plan = planned()
    given = estimate(MEAN_OUTPUT * (1 + drift))
    found = decided(plan, given)
    batch = round(rows / given.mean_periods(iterations))
    assert controls(found) == (batch, iterations, rows)
    assert found.kind == ("adjust" if controls(found) != controls(decided(plan, None)) else "keep")
    assert found.output_drift == pytest.approx(drift, abs=0.01)
    assert found.margin_used <= 1
    bands = found.schedule.bands
    assert bands is not None
    assert bands.decode_rows_high == 30
    if found.kind == "adjust":
        assert bands.encode_tokens_low <= batch * MEAN_INPUT <= bands.encode_tokens_high
        assert found.means == Means(MEAN_INPUT, given.outputs.mean)
        # The same traffic asks for nothing more.
        assert decide(plan, found.schedule, found.means, given).kind == "keep"


def test_drift_that_its_own_error_explains_is_not_beyond() -> None:
    plan = planned()
    given = estimate(MEAN_OUTPUT * 1.25, error=2.0)
    assert given.outputs.mean > plan.margins.replan_above_tokens  # type: ignore[union-attr]
    assert decided(plan, given).kind == "adjust"
    assert decided(plan, estimate(MEAN_OUTPUT * 1.25, error=1.0)).kind == "beyond"


@pytest.mark.parametrize(("output", "iterations", "rows"), [(50.0, N - 1, 20), (10.0, 4, 25)])
def test_beyond_them_the_last_entry_s_rows_are_held(output: float, iterations: int, rows: int) -> None:
    given = estimate(output)
    found = decided(planned(), given)
    assert found.kind == "beyond"
    assert found.margin_used > 1
    assert controls(found) == (max(1, round(rows / given.mean_periods(iterations))), iterations, rows)


def test_inputs_have_margins_of_their_own() -> None:
    plan = planned()
    assert decided(plan, estimate(MEAN_OUTPUT, inputs=MEAN_INPUT * 1.05)).kind == "keep"
    found = decided(plan, estimate(MEAN_OUTPUT, inputs=MEAN_INPUT * 2))
    assert found.kind == "beyond"
    # As many prompt tokens a phase as planned.
    assert (found.schedule.encode_batch, found.schedule.decode_batch) == (2, 12)
    assert found.input_drift == pytest.approx(1.0)
    # Each alone is within its margins, both together are not.
    assert decided(plan, estimate(MEAN_OUTPUT * 0.78)).kind == "adjust"
    assert decided(plan, estimate(MEAN_OUTPUT * 0.78, inputs=MEAN_INPUT * 0.7)).kind == "beyond"


def test_a_plan_without_margins_holds_its_decode_batch() -> None:
    plan = planned(margins=False)
    given = estimate(61.0)  # 12 phases
    found = decide(plan, plan.schedule, Means(), given)
    assert found.kind == "adjust"
    assert controls(found) == (2, N, 24)
    assert decide(plan, found.schedule, found.means, given).kind == "keep"


def test_policies_without_such_controls_are_kept_or_planned_again() -> None:
    plan = dataclasses.replace(plan_of("iteration"), margins=planned().margins)
    assert decided(plan, estimate(MEAN_OUTPUT * 1.1)).kind == "keep"
    found = decided(plan, estimate(MEAN_OUTPUT * 1.6))
    assert found.kind == "beyond"
    assert found.schedule is plan.schedule
