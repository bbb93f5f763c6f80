"""How a trace moves in time: its rate, how unevenly requests come, and how far the mean output drifts.

A plan is made for one mean; `drift` says how far that mean moved between windows of the trace, and how far it would
have moved by chance alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Ints, Trace

WINDOWS = 12


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """When requests came.

    Attributes:
      span_s: from the first to the last.
      rate_rps: requests after the first per second of the span.
      gap_variation: coefficient of variation of the times between requests; 1 for a Poisson process.
      lowest_rps, highest_rps: over windows of equal length.
    """

    span_s: float
    rate_rps: float
    gap_variation: float
    lowest_rps: float
    highest_rps: float


@dataclasses.dataclass(frozen=True)
class Drift:
    """Mean output per window against the mean of the whole trace, as ratios.

    Attributes:
      windows: how many held a request.
      lowest, highest: smallest and largest ratio.
      step: largest change from one window to the next, in units of the whole mean.
      chance: standard error of a window of average size: what the ratios would scatter by without any drift.
    """

    windows: int
    lowest: float
    highest: float
    step: float
    chance: float


def arrivals_of(trace: Trace, windows: int = WINDOWS) -> Arrivals | None:
    """None where the trace tells no times, or all requests came at once."""
    if trace.arrival_s is None or len(trace.arrival_s) < 2:
        return None
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    if span_s <= 0:
        return None
    gaps = np.diff(trace.arrival_s)
    counts = np.bincount(_window(trace, windows), minlength=windows)
    rates = counts * windows / span_s
    return Arrivals(
        span_s=span_s,
        rate_rps=len(gaps) / span_s,
        gap_variation=float(gaps.std() / gaps.mean()),
        lowest_rps=float(rates.min()),
        highest_rps=float(rates.max()),
    )


def drift_of(trace: Trace, windows: int = WINDOWS) -> Drift:
    """Over windows of equal time, or of equal numbers of requests where the trace tells no times."""
    where = _window(trace, windows)
    outputs = trace.output_tokens.astype(np.float64)
    counts = np.bincount(where, minlength=windows)
    filled = counts > 0
    means = np.bincount(where, weights=outputs, minlength=windows)[filled] / counts[filled]
    ratios = means / outputs.mean()
    per_window = len(outputs) / int(filled.sum())
    return Drift(
        windows=int(filled.sum()),
        lowest=float(ratios.min()),
        highest=float(ratios.max()),
        step=float(np.abs(np.diff(ratios)).max(initial=0.0)),
        chance=float(outputs.std() / outputs.mean() / np.sqrt(per_window)),
    )


def _window(trace: Trace, windows: int) -> Ints:
    """The window of each request."""
    count = len(trace.output_tokens)
    at = trace.arrival_s
    if at is None or at[-1] <= at[0]:
        return np.arange(count) * windows // count
    share = (at - at[0]) / (at[-1] - at[0])
    return np.minimum((share * windows).astype(np.int64), windows - 1)
