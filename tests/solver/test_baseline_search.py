"""Tuned baselines: no finer grid finds more than 3% better, limits are kept, and without a plan the nearest is told."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest

from solver.facts.workload import Ints
from solver.plan.schedule import Policy
from solver.search.baseline_search import search_baseline
from solver.search.outcome import Outcome, Tally
from solver.search.proof.limits import Limits
from solver.search.setting import Setting
from solver.search.uniform import Placed, uniform_placements
from solver.simulate.chunked import evaluate_chunked
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.points import Points
from solver.simulate.static import evaluate_static
from tests.conftest import FULL
from tests.solver import search_cases

BASELINES: tuple[Policy, ...] = ("static", "dsi", "iteration", "chunked")
WITHIN = 0.03


def run(setting: Setting, policy: Policy, seconds: float = 60.0) -> Outcome:
    now = time.monotonic()
    return search_baseline(setting, policy, Tally(now, now + seconds), lambda *_: None)


def limits_of(setting: Setting, placed: Placed) -> Limits:
    return dataclasses.replace(setting.limits, memory_bytes=placed.usable_bytes(setting))


def predict(
    setting: Setting, policy: Policy, placed: Placed, m: tuple[int, int], values: tuple[Ints, ...], counted: bool = True
) -> Points:
    """One policy's evaluator on columns of its settings; `counted`: bytes in full."""
    known: dict[str, tuple[Callable[..., Points], tuple[int, ...]]] = {
        "static": (evaluate_static, m),
        "dsi": (evaluate_static, m),
        "iteration": (evaluate_iteration, m),
        "chunked": (evaluate_chunked, m[1:]),
    }
    evaluate, parts = known[policy]
    fixed = placed.pipeline, setting.lengths, setting.conditions
    memory = setting.memory if counted else None
    return evaluate(*fixed, *values, *parts, memory=memory, padding=setting.padding)


def grid_rps(setting: Setting, policy: Policy, axes: tuple[Ints, ...], above: float) -> float:
    """The best setting of a grid that keeps the limits and exceeds `above`; 0 where none does."""
    columns = tuple(axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    best = 0.0
    for placed in uniform_placements(setting):
        for m_e in placed.micro_batches():
            for m_d in placed.micro_batches():
                if m_e != m_d and policy in ("static", "chunked"):
                    continue
                plain = predict(setting, policy, placed, (m_e, m_d), columns, counted=False)
                hopeful = plain.throughput_rps * placed.copies > above
                if hopeful.any():
                    chosen = tuple(column[hopeful] for column in columns)
                    points = predict(setting, policy, placed, (m_e, m_d), chosen)
                    kept = limits_of(setting, placed).kept(points)
                    best = max(best, placed.copies * float(points.throughput_rps[kept].max(initial=0.0)))
    return best


def axes_of(setting: Setting, policy: Policy) -> tuple[Ints, ...]:
    """All values where they are few."""
    rows = np.arange(1, setting.most_rows + 1)
    if policy == "iteration":
        return (rows,)
    if policy == "chunked":
        return np.unique(np.geomspace(64, 8192, 100).astype(np.int64)), rows
    return rows, np.arange(1, setting.most_iterations + 1)


@pytest.mark.parametrize("policy", BASELINES)
def test_no_finer_grid_is_better(policy: Policy) -> None:
    found_any = infeasible = 0
    for seed in range(30 if FULL else 2 if policy == "dsi" else 3):
        setting = search_cases.small_setting(seed)
        outcome = run(setting, policy)
        if outcome.best is None:
            assert grid_rps(setting, policy, axes_of(setting, policy), 0.0) == 0.0, f"seed {seed}"
            infeasible += 1
            continue
        found_any += 1
        best = outcome.best
        finer = grid_rps(setting, policy, axes_of(setting, policy), best.rps * (1 + WITHIN))
        assert finer == 0.0, f"seed {seed}: {finer} against {best.rps}"
        assert limits_of(setting, best.placed).kept(best.points).all()
        assert int(best.points.decode_iterations[0]) >= 1
        assert (best.token_budget > 0) == (policy == "chunked")
        assert outcome.bound_rps == best.rps
    assert found_any


@pytest.mark.parametrize("policy", BASELINES)
def test_a_shipped_profile(policy: Policy) -> None:
    setting = search_cases.opt_setting(latency_s=3.0)
    outcome = run(setting, policy)
    assert outcome.best is not None
    assert float(outcome.best.points.latency_s[0]) <= 3.0
    rows = np.unique(np.geomspace(1, setting.most_rows, 60).astype(np.int64))
    axes = {
        "static": (rows, np.array([1, 7, 20, 79])),
        "dsi": (rows, np.array([1, 79])),
        "iteration": (rows,),
        "chunked": (np.unique(np.geomspace(64, 8192, 40).astype(np.int64)), rows),
    }[policy]
    assert grid_rps(setting, policy, axes, outcome.best.rps * (1 + WITHIN)) == 0.0
    assert grid_rps(setting, policy, axes, outcome.best.rps * 0.9) > 0.0


def test_the_best_is_what_its_own_settings_give() -> None:
    setting = search_cases.opt_setting(latency_s=4.0)
    best = run(setting, "chunked").best
    assert best is not None
    values = np.array([best.token_budget]), best.points.max_rows
    again = predict(setting, "chunked", best.placed, (1, best.decode_micro_batches), values)
    assert best.rps == pytest.approx(float(again.throughput_rps[0]) * best.placed.copies, rel=0.02)


def test_without_a_plan_the_nearest_is_told() -> None:
    setting = search_cases.opt_setting(latency_s=0.5)
    for policy in BASELINES:
        outcome = run(setting, policy)
        assert outcome.best is None
        assert outcome.bound_rps == 0.0
        assert outcome.nearest is not None
        assert 0.5 < float(outcome.nearest.points.latency_s[0]) < 10.0


def test_padded_shapes() -> None:
    policy: Policy
    setting = search_cases.small_setting(1, loose=True, padded=True)
    for policy in ("static", "iteration", "chunked"):
        best = run(setting, policy).best
        assert best is not None
        assert best.rps > 0
        assert limits_of(setting, best.placed).kept(best.points).all()


def test_without_time_nothing_is_looked_at() -> None:
    outcome = run(search_cases.small_setting(0, loose=True), "static", seconds=0.0)
    assert outcome.best is None
    assert outcome.proven_over == "a tuned sweep of 0 settings"
