"""How quickly the engine goes: as the plan predicts until something was measured, then as it was lately."""

from __future__ import annotations

import collections
import math
import time

from exegpt_jax.engine.api import Sampling
from solver.plan.plan import Plan
from solver.plan.prediction import Prediction

_NEW_WEIGHT = 0.1
_USED_WEIGHT = 0.02
_MOST_TIMES = 4.0
_KEPT_MISSES = 256
# Whoever is refused for a miss adds none: it must be forgotten by itself.
_MISS_KEPT_S = 60.0


class RecentMean:
    """The mean of the first ten values, from then on an exponential one that gives each new value a tenth.

    Attributes:
      value: before any, what it was made with.
    """

    def __init__(self, value: float | None) -> None:
        self.value = value
        self._count = 0

    def observe(self, value: float) -> None:
        self._count += 1
        weight = max(1 / self._count, _NEW_WEIGHT)
        self.value = value if self.value is None or weight == 1 else self.value + weight * (value - self.value)


class Pace:
    """Of one plan's run.

    Attributes:
      predicted_s: the plan's period, where it predicts one.
      period_s: from one phase to the next, as `phase_took` was told.
      encode_s: from the start of a request's encode phase to its first token.
    """

    def __init__(self, plan: Plan) -> None:
        self.follow(plan)
        self._generated = self._allowed = 0.0
        # Moments, and seconds.
        self._misses: collections.deque[tuple[float, float]] = collections.deque(maxlen=_KEPT_MISSES)

    def follow(self, plan: Plan) -> None:
        """Its phases come now; what answers used of what they were allowed stays known."""
        self.predicted_s = _period_s(plan.prediction, plan.schedule.decode_iterations)
        self.period_s = RecentMean(self.predicted_s)
        self.encode_s = RecentMean(None if plan.prediction is None else plan.prediction.encode_s)

    def phase_took(self, seconds: float) -> None:
        """One outage among the phases must not count as if all of them took so long."""
        known_s = self.period_s.value
        self.period_s.observe(seconds if known_s is None else min(seconds, _MOST_TIMES * known_s))

    def expected_tokens(self, sampling: Sampling, *, can_stop: bool) -> int:
        """Of an answer: all that are allowed where nothing can end it before; else the share of them that answers used
        lately. Until any has ended as few as may be, so that nobody is refused for an answer that could be short."""
        if not can_stop:
            return sampling.max_tokens
        share = self._generated / self._allowed if self._allowed else 0.0
        return max(1, sampling.min_tokens, math.ceil(share * sampling.max_tokens))

    def answered(self, tokens: int, max_tokens: int) -> None:
        """An answer that something could have ended did end."""
        self._generated += _USED_WEIGHT * (tokens - self._generated)
        self._allowed += _USED_WEIGHT * (max_tokens - self._allowed)

    def missed(self, late_s: float) -> None:
        """A request that had to wait ended so much later than was predicted; earlier, if below 0."""
        self._misses.append((time.monotonic(), late_s))

    @property
    def margin_s(self) -> float:
        """By how much predictions of requests that have to wait fell short in the last minute, at worst: who is let in
        is to be in time with more than 99 of a hundred. One period where none ended."""
        oldest_s = time.monotonic() - _MISS_KEPT_S
        while self._misses and self._misses[0][0] < oldest_s:
            self._misses.popleft()
        if not self._misses:
            return self.period_s.value or 0.0
        return max(0.0, *(late_s for _, late_s in self._misses))


def _period_s(prediction: Prediction | None, iterations: int) -> float | None:
    if prediction is None:
        return None
    return prediction.period_s or prediction.encode_s + iterations * prediction.iteration_s
