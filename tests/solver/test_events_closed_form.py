"""Goal A6: the event simulation and the closed forms, which share stage times alone, agree."""

from __future__ import annotations

import pytest

from tests.benchmarks.events_vs_closed_form import cases, compare_other, compare_rra


@pytest.mark.parametrize("index", range(6))
def test_rra_within_the_goal(index: int, full: bool) -> None:
    case = cases(60, seed=1)[index]
    errors = compare_rra(case, phases=8000 if full else 1200)
    assert errors.within_goal(), (case, errors)


@pytest.mark.parametrize("policy", ["static", "dsi", "iteration", "chunked", "waa"])
def test_other_policies_agree_on_throughput(policy: str, full: bool) -> None:
    found = compare_other(policy, "C1", seed=1, phases=4000 if full else 800)
    assert abs(float(str(found["throughput"]))) <= 0.03, found
