"""How long requests took and how many were answered a second: what a plan's prediction is held against.

The Runner counts whoever got a whole answer. Rates and percentiles are worked out when somebody asks, over the last
`CAPACITY` of them.

A run begins with an empty batch and ends with one that empties, and a plan predicts neither. Its steady part goes from
the first phase at whose beginning everybody of the run's first phase had gone, to the last phase that took anybody in.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from exegpt_jax.runner.events import Finished
from solver.facts.stolen import Stolen

CAPACITY = 200_000


@dataclasses.dataclass(frozen=True)
class Measured:
    """What requests saw.

    Attributes:
      requests: answered, of those kept.
      requests_per_s: of them, from the first one's encode phase to the last token; NaN of none.
      latency_s: at the percentile asked for, on the clock asked for (nearest rank); NaN of none.
      steady_requests: whose encode phase lies in the steady part.
      steady_requests_per_s, steady_latency_s: of these; those of all where the run has no steady part.
    """

    requests: int
    requests_per_s: float
    latency_s: float
    steady_requests: int
    steady_requests_per_s: float
    steady_latency_s: float


class Figures:
    """A bounded record of finished requests. The Runner's thread counts, any thread may ask.

    Attributes:
      stolen: what others took of this machine since the record began.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.stolen = Stolen()
        self._times: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=capacity)

    def count(self, finished: Iterable[Finished]) -> None:
        """Requests that got their whole answer just now."""
        self._times.extend((e.times.arrival_s, e.times.encode_start_s, e.times.last_token_s) for e in finished)

    def measured(self, percentile: float = 99.0, clock: Literal["encode", "arrival"] = "encode") -> Measured:
        """Rates, and the latency at a percentile from the start of the encode phase or from arrival."""
        if not self._times:
            return Measured(0, math.nan, math.nan, 0, math.nan, math.nan)
        arrival_s, begin_s, end_s = np.array(tuple(self._times)).T
        latency_s = end_s - (begin_s if clock == "encode" else arrival_s)
        span_s = float(end_s.max() - begin_s.min())
        rate = len(end_s) / span_s if span_s > 0 else math.nan
        whole = Measured(len(end_s), rate, _rank(latency_s, percentile), 0, rate, _rank(latency_s, percentile))
        first_s, last_s = float(begin_s.min()), float(begin_s.max())
        begins_s = np.unique(begin_s)
        full = begins_s[begins_s >= end_s[begin_s == first_s].max()]
        if not len(full) or full[0] >= last_s:
            return whole
        inside = (begin_s >= full[0]) & (begin_s < last_s)
        # Whoever came later may have run while the batch emptied, in shorter phases.
        unhurried = inside & (begin_s <= last_s - (end_s - begin_s).max())
        return dataclasses.replace(
            whole,
            steady_requests=int(inside.sum()),
            steady_requests_per_s=float(inside.sum() / (last_s - full[0])),
            steady_latency_s=_rank(latency_s[unhurried] if unhurried.any() else latency_s, percentile),
        )


def _rank(values: np.ndarray, percentile: float) -> float:
    return float(np.percentile(values, percentile, method="inverted_cdf"))
