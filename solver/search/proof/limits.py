"""What a search keeps and what it maximises: the limits, and the goal with its optimistic value on a box."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats
from solver.search.proof.boxes import BoxBounds
from solver.simulate.points import Points


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a candidate must keep, everything together.

    Attributes:
      latency_s, ttft_s, tpot_s: infinite where there is no bound.
      memory_bytes: capacity of a device of each stage; empty where memory does not count.
    """

    latency_s: float = math.inf
    ttft_s: float = math.inf
    tpot_s: float = math.inf
    memory_bytes: tuple[float, ...] = ()

    def within(self, delta: float) -> Limits:
        """Limits that, kept by the profile as it is, are kept by every profile within +-delta of it.

        All three times grow with every entry of a profile, and scale with it.
        """
        keep = 1 + delta
        return dataclasses.replace(
            self, latency_s=self.latency_s / keep, ttft_s=self.ttft_s / keep, tpot_s=self.tpot_s / keep
        )

    def without(self, name: str) -> Limits:
        """All but one: "latency_s", "ttft_s" or "tpot_s"."""
        return Limits(
            latency_s=math.inf if name == "latency_s" else self.latency_s,
            ttft_s=math.inf if name == "ttft_s" else self.ttft_s,
            tpot_s=math.inf if name == "tpot_s" else self.tpot_s,
            memory_bytes=self.memory_bytes,
        )

    def memory_share(self, points: Points) -> Floats:
        """float64 [P]: of the capacity, on the fullest stage."""
        if not self.memory_bytes:
            return np.zeros(len(points.encode_batch))
        return (points.memory_bytes / np.array(self.memory_bytes)[:, None]).max(axis=0)

    def kept(self, points: Points) -> NDArray[np.bool_]:
        """bool [P]; never where throughput is 0, which marks what costs were not tabulated for."""
        return (
            (points.throughput_rps > 0)
            & (points.latency_s <= self.latency_s)
            & (points.ttft_s <= self.ttft_s)
            & ((points.tpot_s <= self.tpot_s) | math.isinf(self.tpot_s))
            & (self.memory_share(points) <= 1)
        )

    def hopeful(self, bound: BoxBounds) -> NDArray[np.bool_]:
        """bool [boxes]: some candidate may keep them."""
        memory = 1.0 if self.memory_bytes else np.finfo(np.float64).max
        return (
            (bound.latency_s <= self.latency_s)
            & (bound.ttft_s <= self.ttft_s)
            & (bound.tpot_s <= self.tpot_s)
            & (bound.memory_share <= memory)
        )


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is maximised.

    Attributes:
      name: for people.
      of_points: value [P] of candidates.
      of_boxes: value [boxes] that no candidate of the box exceeds.
      with_tpot: `of_boxes` reads time per output token.
    """

    name: str
    of_points: Callable[[Points], Floats]
    of_boxes: Callable[[BoxBounds], Floats]
    with_tpot: bool = False


THROUGHPUT = Goal("throughput", lambda points: points.throughput_rps, lambda bound: bound.throughput_rps)
