"""Predicted beside measured, for the summaries of `generate`, `serve` and `demo`: figures, errors, the bound.

Throughput and latency are the plan's, for the lengths it was made for, beside the steady part of the run; phases are
predicted in the shapes that they ran in, so they tell errors of the profile from changes of the traffic.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from exegpt_jax.runner.figures import Measured
from exegpt_jax.runner.loop import Runner
from solver.facts.stolen import Stolen
from solver.plan.plan import Plan
from solver.plan.timeline import PhaseTime
from solver.report.words import seconds

_SLOW_PERCENTILE = 99.0
"""Where an answer takes a phase or two, the slowest of a hundred phases is what its p99 meets."""


@dataclasses.dataclass(frozen=True)
class PhaseErrors:
    """Phases of one run beside their predictions.

    Attributes:
      phases: that are predicted.
      median: of |predicted / measured - 1|; None without any.
      total: of all their time together, predicted / measured - 1.
      pace: median of measured / predicted.
      spread: of that: 99th percentile over median, minus 1.
      fast: 1st percentile of measured / predicted.
    """

    phases: int
    median: float | None = None
    total: float | None = None
    pace: float | None = None
    spread: float | None = None
    fast: float | None = None

    @property
    def slow(self) -> float | None:
        """99th percentile of measured / predicted: what a bound at p99 meets."""
        return None if self.pace is None or self.spread is None else self.pace * (1 + self.spread)


@dataclasses.dataclass(frozen=True)
class Beside:
    """One run.

    Attributes:
      predicted_rps, predicted_latency_s: the plan's; None where it predicts nothing.
      measured: what requests saw.
      percentile: of both latencies.
      bound_s: on latency; None without one.
      phases: predicted one by one.
      stolen: share of this machine that others took meanwhile, as a virtual machine counts it.
    """

    predicted_rps: float | None
    predicted_latency_s: float | None
    measured: Measured
    percentile: float
    bound_s: float | None
    phases: PhaseErrors
    stolen: float = 0.0

    @property
    def rps_error(self) -> float | None:
        """Predicted / measured - 1."""
        return _error(self.predicted_rps, self.measured.steady_requests_per_s)

    @property
    def latency_error(self) -> float | None:
        return _error(self.predicted_latency_s, self.measured.steady_latency_s)

    @property
    def kept(self) -> bool | None:
        """Whether the bound was kept, over every request; None without a bound or a request."""
        known = self.bound_s is not None and not math.isnan(self.measured.latency_s)
        return self.measured.latency_s <= self.bound_s if known and self.bound_s is not None else None

    def fields(self) -> dict[str, object]:
        """For machines; null where there is no number."""
        found = {
            "predicted_requests_per_s": self.predicted_rps,
            "measured_requests_per_s": self.measured.steady_requests_per_s,
            "requests_per_s_error": self.rps_error,
            "latency_percentile": self.percentile,
            "predicted_latency_s": self.predicted_latency_s,
            "measured_latency_s": self.measured.steady_latency_s,
            "latency_s_error": self.latency_error,
            "latency_s": self.measured.latency_s,
            "latency_bound_s": self.bound_s,
            "bound_kept": self.kept,
            "phases": self.phases.phases,
            "phase_error": self.phases.median,
            "phases_error": self.phases.total,
            "phases_pace": self.phases.pace,
            "phases_spread": self.phases.spread,
            "phases_fast": self.phases.fast,
            "phases_slow": self.phases.slow,
            "stolen_share": self.stolen,
        }
        return {name: _figure(value) for name, value in found.items()}

    def lines(self) -> list[str]:
        """For people."""
        if not self.measured.requests:
            return []
        rps, latency_s = self.measured.steady_requests_per_s, self.measured.steady_latency_s
        lines = [f"measured {rps:.4g} requests/s, p{self.percentile:g} latency {seconds(latency_s)}{self._bound()}"]
        if self.predicted_rps is not None and self.predicted_latency_s is not None:
            lines.append(
                f"predicted {self.predicted_rps:.4g} requests/s ({_percent(self.rps_error)}), p{self.percentile:g} "
                f"latency {seconds(self.predicted_latency_s)} ({_percent(self.latency_error)})"
            )
        if self.phases.median is not None:
            lines.append(
                f"{self.phases.phases} phases predicted one by one: {_percent(self.phases.total)} of their time in "
                f"all, median error {self.phases.median:.1%}; they took {self.phases.fast:.2f} to "
                f"{self.phases.slow:.2f} times as long as predicted"
            )
        if self.stolen > Stolen.TOLERANCE:
            lines.append(f"others took {self.stolen:.0%} of this machine meanwhile, which no plan can promise against")
        return lines

    def _bound(self) -> str:
        if self.kept is None or self.bound_s is None:
            return ""
        return f", bound {seconds(self.bound_s)} {'kept' if self.kept else 'MISSED'}"


def beside(plan: Plan, runner: Runner) -> Beside:
    """What a Runner that ran the plan has measured."""
    bounds, predicted = plan.bounds, plan.prediction
    percentile = bounds.latency_percentile if bounds is not None else 99.0
    clock = bounds.bound_from if bounds is not None else "encode"
    latency_s = throughput_rps = None
    if predicted is not None:
        throughput_rps = predicted.expected.throughput_rps
        latency_s = predicted.latency_with_wait_s if clock == "arrival" else predicted.expected.latency_s
    errors = phase_errors(runner.timeline.phases())
    return Beside(
        predicted_rps=throughput_rps,
        predicted_latency_s=latency_s,
        measured=runner.figures.measured(percentile, clock),
        percentile=percentile,
        bound_s=None if bounds is None else bounds.latency_s,
        phases=errors,
        stolen=runner.figures.stolen.share(),
    )


def phase_errors(phases: list[PhaseTime]) -> PhaseErrors:
    """Over those that are predicted."""
    known = [(p.predicted_s, p.measured_s) for p in phases if p.predicted_s is not None and p.error is not None]
    if not known:
        return PhaseErrors(0)
    predicted_s, measured_s = np.array(known).T
    paces, errors = measured_s / predicted_s, np.abs(predicted_s / measured_s - 1)
    fast, pace, slow = np.percentile(paces, [100 - _SLOW_PERCENTILE, 50.0, _SLOW_PERCENTILE])
    return PhaseErrors(
        phases=len(known),
        median=float(np.median(errors)),
        total=float(predicted_s.sum() / measured_s.sum()) - 1,
        pace=float(pace),
        spread=float(slow / pace) - 1,
        fast=float(fast),
    )


def _error(predicted: float | None, measured: float) -> float | None:
    return None if predicted is None or not measured > 0 else predicted / measured - 1


def _figure(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _percent(error: float | None) -> str:
    return "no error known" if error is None else f"{error:+.1%}"
