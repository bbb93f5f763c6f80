"""Margins: what is certified holds for every profile in a band, and between the two readings of a noisy one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.facts.workload import merge
from solver.search.margins import drifted, margins_of
from solver.search.outcome import Tally
from solver.search.proof.bounds import RraBounds
from solver.search.proof.boxes import Boxes
from solver.search.proof.branch_and_bound import search
from solver.search.proof.envelopes import lower, upper
from solver.search.proof.floors import floors_of
from solver.search.proof.limits import Limits
from solver.search.rra_search import rra_evaluator, search_rra
from solver.search.setting import make_setting
from solver.search.uniform import again
from solver.simulate.costs import Pipeline
from solver.simulate.lengths import residents
from solver.simulate.rra import evaluate_rra
from tests.solver.search_cases import small_setting
from tests.solver.test_branch_and_bound import MOST_ENCODE, MOST_ITERATIONS, make_instance

BOX = (1, MOST_ENCODE), (1, MOST_ITERATIONS)
TIMES = ("encode_s", "decode_s", "embed_encode_s", "embed_decode_s", "head_encode_s", "head_decode_s")


def within_band(rng: np.random.Generator, pipeline: Pipeline, delta: float) -> Pipeline:
    """Every entry of the profile moved on its own by up to +-delta."""

    def move(seconds: np.ndarray) -> np.ndarray:
        return seconds * rng.uniform(1 - delta, 1 + delta, seconds.shape)

    stages = []
    for stage in pipeline.stages:
        unit = stage.unit
        moved = dataclasses.replace(
            unit,
            **{name: move(getattr(unit, name)) for name in TIMES},
            hand_over_encode_s={level: move(column) for level, column in unit.hand_over_encode_s.items()},
            hand_over_decode_s={level: move(column) for level, column in unit.hand_over_decode_s.items()},
        )
        stages.append(dataclasses.replace(stage, unit=moved))
    return dataclasses.replace(pipeline, stages=tuple(stages))


def test_a_plan_within_delta_keeps_its_limits_on_every_profile_of_the_band() -> None:
    delta, certified = 0.1, 0
    for seed in range(12):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        rng = np.random.default_rng(seed)
        latency = float(np.quantile([plain.latency_s for plain in instance.grid.values()], 0.5))
        limits = Limits(latency_s=latency, ttft_s=latency)
        found = search(instance.bounds(), instance.evaluate, limits.within(delta), BOX)
        if found.best is None:
            continue
        certified += 1
        b, n = (np.array([value]) for value in found.best)
        for _ in range(10):
            moved = dataclasses.replace(instance, pipeline=within_band(rng, instance.pipeline, delta))
            points = moved.evaluate(b, n)
            assert limits.kept(points).all()
            assert found.objective / (1 + delta) <= points.throughput_rps[0] <= found.objective / (1 - delta)
    assert certified > 5


def test_readings_of_noise_enclose_the_optimum() -> None:
    for seed in range(12):
        instance = make_instance(seed)
        if not instance.grid:
            continue
        high, low = upper(instance.pipeline), lower(instance.pipeline)
        for name in ("encode_rows_s", "decode_rows_s"):
            worst, best, plain = (getattr(p, name) for p in (high, low, instance.pipeline))
            assert (best <= plain * (1 + 1e-12)).all()
            assert (plain <= worst * (1 + 1e-12)).all()
            assert (np.diff(worst, axis=-1) >= -1e-12).all()
            assert (np.diff(best[..., 1:], axis=-1) >= -1e-12).all()
        limits = Limits(latency_s=float(np.median([plain.latency_s for plain in instance.grid.values()])))
        exact = search(instance.bounds(), instance.evaluate, limits, BOX)
        sure = dataclasses.replace(instance, pipeline=high)
        bounds = dataclasses.replace(instance, pipeline=low)
        certified = search(sure.bounds(), sure.evaluate, limits, BOX)
        possible = search(bounds.bounds(), bounds.evaluate, limits, BOX)
        assert certified.objective <= exact.objective <= possible.bound
        if certified.best is not None:
            b, n = (np.array([value]) for value in certified.best)
            assert limits.kept(instance.evaluate(b, n)).all()


@pytest.mark.parametrize("delivery", ["iteration", "phase", "phase+1"])
def test_bounds_hold_on_the_arrival_clock(delivery: str) -> None:
    for seed in range(8):
        instance = make_instance(seed)
        conditions = dataclasses.replace(instance.conditions, clock="arrival", delivery=delivery)
        bounds = RraBounds(floors_of(instance.pipeline), instance.lengths, conditions, MOST_ITERATIONS)
        b, n = (g.ravel() for g in np.meshgrid(np.arange(1, MOST_ENCODE + 1), np.arange(1, MOST_ITERATIONS + 1)))
        points = evaluate_rra(instance.pipeline, instance.lengths, conditions, b, n, rate_rps=1e-3)
        bound = bounds.bound(Boxes(b, b, n, n), with_tpot=True)
        there = points.throughput_rps > 0
        assert np.isfinite(points.latency_s[there]).all()
        assert (points.latency_s >= bound.latency_s)[there].all()
        assert (points.ttft_s >= bound.ttft_s)[there].all()
        assert (points.tpot_s >= bound.tpot_s)[there].all()


def test_limits_within_a_band_are_tighter() -> None:
    limits = Limits(latency_s=2.0, tpot_s=0.1, memory_bytes=(5.0,)).within(0.25)
    assert (limits.latency_s, limits.ttft_s, limits.tpot_s, limits.memory_bytes) == (1.6, math.inf, 0.08, (5.0,))


@pytest.mark.parametrize("seed", [5, 8])
def test_controls_within_the_margins_keep_every_bound_on_the_plan_s_own_rows(seed: int) -> None:
    """Entries hold a decode batch: both whole B_E around the one that does so are looked at again."""
    setting = small_setting(seed)
    best = search_rra(setting, Tally(0.0, math.inf), lambda *_: None).best
    if best is None:
        pytest.skip("no schedule keeps these bounds")
    margins = margins_of(setting, best)
    drifts = [each.output_drift for each in margins.neighbours]
    assert drifts == sorted(drifts)
    assert margins.mean_output_tokens == pytest.approx(setting.workload.mean_output)
    assert margins.mean_input_tokens == setting.workload.mean_input
    most, iterations = float(best.points.decode_batch[0]), int(best.points.decode_iterations[0])
    for each in margins.neighbours:
        if not margins.output_drift_low <= each.output_drift <= margins.output_drift_high:
            continue
        assert each.encode_batch is not None
        assert each.decode_iterations is not None
        assert each.decode_batch is not None
        assert each.throughput_rps is not None
        assert each.decode_iterations <= iterations
        assert each.decode_batch <= max(1, round(most))
        workload = drifted(setting.workload, each.output_drift, setting.conditions.cache_tokens)
        other = make_setting(setting.request, workload)
        placed = again(other, best.placed)
        evaluate = rra_evaluator(other, placed, best.encode_micro_batches, best.decode_micro_batches)
        batch = each.decode_batch / residents(other.lengths, each.decode_iterations).rows[0]
        assert each.encode_batch == max(1, round(batch))
        around = np.maximum(1, [math.floor(batch), math.ceil(batch)])
        points = evaluate(around, np.full(2, each.decode_iterations))
        assert points.latency_s.min() <= other.limits.latency_s
        assert points.ttft_s.min() <= other.limits.ttft_s
        rps = points.throughput_rps * placed.copies * min(1.0, batch)
        assert rps.min() * (1 - 1e-9) <= each.throughput_rps <= rps.max() * (1 + 1e-9)


@pytest.mark.parametrize("side", ["input", "output"])
def test_lengths_drift_by_the_share_that_was_asked_for(side: str) -> None:
    workload = merge("one", "", np.array([10, 30]), np.array([20, 8]), np.array([1.0, 3.0]))
    longer = drifted(workload, 0.15, 1000, side)  # type: ignore[arg-type]
    moved, kept = ("mean_input", "mean_output") if side == "input" else ("mean_output", "mean_input")
    assert getattr(longer, moved) == pytest.approx(1.15 * getattr(workload, moved))
    assert getattr(longer, kept) == pytest.approx(getattr(workload, kept))
    short = drifted(workload, 0.5, 36, side, most_input=34)  # type: ignore[arg-type]
    assert short.most_tokens <= 36
    assert short.most_input <= 34
