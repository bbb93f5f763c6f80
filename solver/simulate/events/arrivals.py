"""Who asks in an event simulation, and when: requests of a trace, or drawn from a Workload.

A Demand is a list of requests in order of arrival. Without arrival times it is a closed loop at saturation: whoever is
wanted is there. The simulation alone sees output lengths; no policy does.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats, Ints, Trace, Workload


@dataclasses.dataclass(frozen=True, eq=False)
class Demand:
    """Requests in order of arrival.

    Attributes:
      input_tokens, output_tokens: int64 [requests].
      arrival_s: float64 [requests], not falling; None: everybody waits from the start, and waits are not counted.
    """

    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None

    def __len__(self) -> int:
        return len(self.input_tokens)

    def decode_iterations(self, first_token: str) -> Ints:
        """int64 [requests]: D = S - 1 where the encode phase emits the first token, else S."""
        return self.output_tokens - (1 if first_token == "encode" else 0)

    def share(self, index: int, of: int) -> Demand:
        """Every `of`-th request from `index` on: what one of several replicas gets in turns."""
        arrival_s = None if self.arrival_s is None else self.arrival_s[index::of]
        return Demand(self.input_tokens[index::of], self.output_tokens[index::of], arrival_s)


def replay(trace: Trace, speed: float = 1.0) -> Demand:
    """A trace as it was recorded, its arrivals compressed in time by `speed`; without times, at saturation."""
    if not (np.isfinite(speed) and speed > 0):
        raise ValueError(f"speed: {speed!r} is no positive factor; give 1 to replay a trace as it was")
    arrival_s = None if trace.arrival_s is None else trace.arrival_s / speed
    return Demand(trace.input_tokens, trace.output_tokens, arrival_s)


def saturated(workload: Workload, requests: int, seed: int = 0) -> Demand:
    """Independent draws from the joint distribution; somebody always waits."""
    pairs = _pairs(workload, requests, np.random.default_rng(seed))
    return Demand(workload.input_tokens[pairs], workload.output_tokens[pairs])


def arriving(workload: Workload, requests: int, rate_rps: float, variation: float = 1.0, seed: int = 0) -> Demand:
    """Independent draws that arrive at a mean rate.

    Args:
      workload: of lengths.
      requests: how many.
      rate_rps: arrivals per second.
      variation: coefficient of variation of the gaps, which are Gamma distributed; 1 is a Poisson process, 0 a clock.
      seed: of the draws.
    """
    if not (np.isfinite(rate_rps) and rate_rps > 0):
        raise ValueError(f"rate_rps: {rate_rps!r} is no arrival rate; give a positive number")
    if not (np.isfinite(variation) and variation >= 0):
        raise ValueError(f"variation: {variation!r} is no coefficient of variation; give 0 or more (1: Poisson)")
    rng = np.random.default_rng(seed)
    pairs = _pairs(workload, requests, rng)
    if variation == 0:
        gaps = np.full(requests, 1 / rate_rps)
    else:
        shape = 1 / variation**2
        gaps = rng.gamma(shape, 1 / (shape * rate_rps), requests)
    return Demand(workload.input_tokens[pairs], workload.output_tokens[pairs], np.cumsum(gaps))


def _pairs(workload: Workload, requests: int, rng: np.random.Generator) -> Ints:
    """int64 [requests]: indices of pairs."""
    if requests < 1:
        raise ValueError(f"requests: {requests} is too few; give at least 1")
    share = np.cumsum(workload.probability)
    return np.minimum(np.searchsorted(share, rng.random(requests), side="right"), len(share) - 1).astype(np.int64)
