"""The highest arrival rate at which a bound holds: the objective wherever requests arrive (contracts.md).

A trace is compressed in time, or draws arrive faster, until the simulated percentile passes the bound. Waits grow with
the rate, though not without exception, so the answer is a rate that was simulated and held, beside one that did not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from solver.simulate.events.outcome import Outcome


@dataclasses.dataclass(frozen=True, eq=False)
class HighestRate:
    """What the search found.

    Attributes:
      speed: highest factor that held; 0 if none did.
      failed: lowest factor above it that did not hold; inf if all held.
      outcome: the run at `speed`; None if none held.
      runs: simulations spent.
    """

    speed: float
    failed: float
    outcome: Outcome | None
    runs: int


def highest_rate(
    run: Callable[[float], Outcome],
    holds: Callable[[Outcome], bool],
    *,
    first: float = 1.0,
    tolerance: float = 0.01,
    most: float = 1024.0,
) -> HighestRate:
    """Doubles or halves from `first` until the bound turns, then bisects.

    Args:
      run: simulates at a speed: a trace compressed by it, or a rate.
      holds: whether an outcome keeps the bounds.
      first: where to start.
      tolerance: relative width at which to stop.
      most: factor from `first`, up or down, beyond which to give up.
    """
    if not (first > 0 and tolerance > 0 and most > 1):
        raise ValueError(f"first: {first!r}, tolerance: {tolerance!r}, most: {most!r}; give positive numbers, most > 1")
    best: Outcome | None = None
    low, high, runs = 0.0, float("inf"), 0

    def trial(speed: float) -> None:
        nonlocal best, low, high, runs
        outcome = run(speed)
        runs += 1
        if holds(outcome):
            low, best = speed, outcome
        else:
            high = speed

    trial(first)
    while low == 0.0 and high > first / most:
        trial(high / 2)
    while high == float("inf") and low < first * most:
        trial(low * 2)
    while low > 0.0 and high < float("inf") and high > low * (1 + tolerance):
        trial((low * high) ** 0.5)
    return HighestRate(low, high, best, runs)
