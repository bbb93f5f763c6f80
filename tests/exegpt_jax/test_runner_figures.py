"""Rates and latencies of a run, and of its steady part."""

from __future__ import annotations

import math

import pytest

from exegpt_jax.runner.events import Finished, Times
from exegpt_jax.runner.figures import Figures


def finished(arrival_s: float, begin_s: float, end_s: float) -> Finished:
    return Finished("x", "stop", None, "", 1, 2, Times(arrival_s, begin_s, begin_s, end_s))


def test_nothing_measured_is_no_number() -> None:
    found = Figures().measured()
    assert found.requests == 0
    assert math.isnan(found.requests_per_s)
    assert math.isnan(found.latency_s)


def test_percentile_and_clock_are_those_asked_for() -> None:
    figures = Figures()
    figures.count(finished(0.0, 10.0, 10.0 + latency) for latency in range(1, 101))
    assert figures.measured(99.0).latency_s == 99.0
    assert figures.measured(50.0).latency_s == 50.0
    assert figures.measured(99.0, "arrival").latency_s == 109.0
    assert figures.measured().requests_per_s == pytest.approx(100 / 100)


def test_the_steady_part_leaves_filling_and_draining_out() -> None:
    """A phase a second takes four in, who stay three seconds; while the batch fills, phases take half a second, and
    whoever is in the last three is out in one.
    """
    figures = Figures()
    for phase in range(4):
        figures.count([finished(0.0, 0.5 * phase, 2.0)] * 4)
    for phase in range(2, 30):
        figures.count([finished(0.0, phase, phase + (3.0 if phase < 27 else 1.0))] * 4)
    found = figures.measured()
    assert found.requests == 128
    assert found.steady_requests_per_s == pytest.approx(4.0)
    assert found.steady_requests == 4 * 27
    assert found.steady_latency_s == 3.0
    assert found.requests_per_s == pytest.approx(128 / 30)


def test_a_run_without_a_steady_part_counts_as_a_whole() -> None:
    figures = Figures()
    figures.count([finished(0.0, 0.0, 2.0), finished(0.0, 1.0, 4.0)])
    found = figures.measured()
    assert (found.steady_requests, found.steady_requests_per_s) == (0, 0.5)
    assert found.steady_latency_s == found.latency_s == 3.0


def test_only_the_last_are_kept() -> None:
    figures = Figures(capacity=10)
    figures.count(finished(0.0, float(begin), begin + 1.0) for begin in range(50))
    assert figures.measured().requests == 10
