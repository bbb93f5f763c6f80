"""When the requests of an open loop are sent: drawn, or as a trace tells it."""

from __future__ import annotations

import math

import numpy as np

from solver.facts.columns import Column, read_columns
from solver.facts.workload import Floats

_BLOCK = 4096


def drawn(rate_rps: float, *, burstiness: float, seed: int, count: int | None, until_s: float) -> Floats:
    """Arrival times from 0 on with Gamma distributed gaps, as vLLM's benchmark draws them.

    Args:
      rate_rps: arrivals per second; infinite: all at once.
      burstiness: shape of the Gamma distribution; 1 is a Poisson process, less comes in bursts, more like a clock.
      seed: of the draws; the same for every count, so that a longer load begins as a shorter one.
      count: at most so many; None: as many as come before `until_s`.
      until_s: none later.
    """
    if not rate_rps > 0:
        raise ValueError(f"rate: {rate_rps:g} is no arrival rate; give requests per second, or inf for all at once")
    if not 0 < burstiness < math.inf:
        raise ValueError(f"burstiness: {burstiness:g} is no shape; give a positive number (1: Poisson)")
    if math.isinf(rate_rps):
        if count is None:
            raise ValueError("rate: inf without an end; give --requests=N")
        return np.zeros(count)
    rng = np.random.default_rng(seed)
    blocks: list[Floats] = []
    last_s, drawn_so_far = 0.0, 0
    while last_s <= until_s and (count is None or drawn_so_far < count):
        block = last_s + np.cumsum(rng.gamma(burstiness, 1 / (rate_rps * burstiness), _BLOCK))
        blocks.append(block)
        last_s, drawn_so_far = float(block[-1]), drawn_so_far + _BLOCK
    return cut(np.concatenate(blocks) if blocks else np.zeros(0), count, until_s)


def cut(at_s: Floats, count: int | None, until_s: float) -> Floats:
    """The first `count`, as far as they come before `until_s`."""
    return at_s[: int(np.searchsorted(at_s, until_s, side="right"))][:count]


def compressed(at_s: Floats, speed: float) -> Floats:
    """A trace's times, `speed` times as fast."""
    if not 0 < speed < math.inf:
        raise ValueError(f"speed: {speed:g} is no factor; give a positive number (1: as it was)")
    return at_s / speed


def times_of(source: str, arrival_column: str) -> Floats:
    """The times alone of a log in CSV or JSON lines, sorted, from the first on. Raises ValueError with one line."""
    (at_s,) = read_columns(source, [Column(arrival_column, "time")])
    at_s.sort()
    return at_s - at_s[0]
