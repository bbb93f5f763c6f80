"""From service times by output length to the percentiles that bounds limit, on either clock. Every policy ends here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.lengths import Lengths
from solver.simulate.points import Conditions
from solver.simulate.quantiles import quantile_with_wait, weighted_quantile

Service = Callable[[Ints], Floats]
"""int64 [lengths] of decode iterations -> float64 [lengths, P]: seconds from the start of encode to the last token."""


def percentiles(
    lengths: Lengths,
    conditions: Conditions,
    service: Service,
    first_s: Floats,
    cycle_s: Floats,
    throughput_rps: Floats,
    rate_rps: float | None,
    with_tpot: bool,
) -> tuple[Floats, Floats, Floats]:
    """Latency, time to first token and time per output token, [P] each.

    Args:
      service: L_service(d).
      first_s: float64 [P]: service time to the first token.
      cycle_s: float64 [P]: time between two admissions. On the arrival clock a request waits for the next one,
        uniformly over the cycle and independently of its length, so the percentile is that of the convolution.
      throughput_rps, rate_rps: at or beyond capacity, and without a rate, the wait is infinite.
      with_tpot: False: NaN in its place.
    """
    tpot = _tpot(lengths, conditions, service, first_s) if with_tpot else np.full_like(cycle_s, np.nan)
    percentile = conditions.latency_percentile
    if conditions.clock == "encode":
        return service(np.array([lengths.decode_percentile(percentile)]))[0], first_s, tpot
    stable = np.full(cycle_s.shape, rate_rps is not None) & ((rate_rps or 0.0) < throughput_rps)
    latency, ttft = np.full_like(cycle_s, np.inf), np.full_like(cycle_s, np.inf)
    if stable.any():
        steps, mass = pmf(lengths)
        served = service(steps)[:, stable]
        latency[stable] = quantile_with_wait(served, mass, cycle_s[stable], percentile / 100)
        ttft[stable] = (first_s + conditions.ttft_percentile / 100 * cycle_s)[stable]
    return latency, ttft, tpot


def pmf(lengths: Lengths) -> tuple[Ints, Floats]:
    """The numbers of decode iterations that occur, and their probabilities."""
    mass = -np.diff(lengths.alive, append=0.0)
    steps = np.flatnonzero(mass > 0)
    return steps.astype(np.int64), mass[steps]


def _tpot(lengths: Lengths, conditions: Conditions, service: Service, first_s: Floats) -> Floats:
    """The quantile over requests of at least two tokens of (last - first) / (tokens - 1); 0 where there are none.

    It is not monotone in the length under policies that deliver by phases, so every length is looked at.
    """
    steps, mass = pmf(lengths)
    behind = steps - (0 if lengths.first_token == "encode" else 1)
    counted = behind >= 1
    if not counted.any():
        return np.zeros_like(first_s)
    each = (service(steps[counted]) - first_s) / behind[counted][:, None]
    return weighted_quantile(each, mass[counted], conditions.tpot_percentile / 100)
