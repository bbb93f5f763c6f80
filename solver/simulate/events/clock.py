"""When micro-batches are ready: stages that work on one thing at a time, in the order in which it comes.

A micro-batch starts on a stage when the stage is free and the stage before has handed it over; its next iteration
starts when its tokens are back at the first stage. Bubbles, fill and drain are what remains; no formula says them.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats


class Clock:
    """The stages of one pipeline.

    Attributes:
      free_s: per stage, when it has done all it was given.
      busy_s: float64 [stages]: time worked so far.
    """

    def __init__(self, stages: int, return_s: float, start_s: float = 0.0) -> None:
        self.free_s = [start_s] * stages
        self.busy_s = np.zeros(stages)
        self._return_s = return_s

    @property
    def idle_s(self) -> float:
        """When the last stage falls idle."""
        return max(self.free_s)

    def hold(self, until_s: float) -> None:
        """No stage starts anything before."""
        self.free_s = [max(free_s, until_s) for free_s in self.free_s]

    def encode(self, times: Floats, ready_s: float) -> list[float]:
        """When each micro-batch leaves the last stage.

        Args:
          times: float64 [micro-batches, stages].
          ready_s: from when on they may start.
        """
        self.busy_s += times.sum(axis=0)
        return [self._pass(spent, ready_s) for spent in times.tolist()]

    def decode(self, times: Floats, ready_s: list[float]) -> Floats:
        """float64 [N, micro-batches]: when the tokens of each iteration are known.

        Args:
          times: float64 [N, micro-batches, stages].
          ready_s: per micro-batch, when its first iteration may start.
        """
        self.busy_s += times.sum(axis=(0, 1))
        if times.shape[1:] == (1, 1):
            done_s = max(ready_s[0], self.free_s[0]) + np.cumsum(times[:, 0, 0] + self._return_s)
            self.free_s[0] = float(done_s[-1]) - self._return_s if len(done_s) else self.free_s[0]
            return done_s[:, None]
        ready_s = list(ready_s)
        done = np.empty(times.shape[:2])
        for iteration, parts in enumerate(times.tolist()):
            for part, spent in enumerate(parts):
                ready_s[part] = self._pass(spent, ready_s[part]) + self._return_s
            done[iteration] = ready_s
        return done

    def _pass(self, spent_s: list[float], at_s: float) -> float:
        """One micro-batch through every stage."""
        free_s = self.free_s
        for stage, seconds in enumerate(spent_s):
            at_s = max(at_s, free_s[stage]) + seconds
            free_s[stage] = at_s
        return at_s
