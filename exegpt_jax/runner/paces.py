"""How fast the devices are: what phases take of what the profile says."""

from __future__ import annotations

import collections
import statistics

from solver.plan.certificate import Margins

# Phases that count: half a minute of most schedules. What passes sooner is over before another plan runs.
_PHASES = 1024
_LEAST_PHASES = 256
# A pace that is off by less asks for no new plan, however little the profile spreads.
_LEAST_MARGIN = 0.25


class Paces:
    """Of the last phases. Used by the Runner's thread alone."""

    def __init__(self) -> None:
        self._paces: collections.deque[float] = collections.deque(maxlen=_PHASES)

    def took(self, measured_s: float, predicted_s: float | None) -> None:
        """A phase; None where nothing was predicted of it."""
        if predicted_s:
            self._paces.append(measured_s / predicted_s)

    def now(self) -> float | None:
        """Median of measured / predicted; None while few phases were seen."""
        return statistics.median(self._paces) if len(self._paces) >= _LEAST_PHASES else None


def margin_used(margins: Margins, pace: float, planned: float) -> float:
    """Share of the margin of times that a pace takes where `planned` was planned for; beyond 1 it is left."""
    return abs(pace / planned - 1) / max(margins.profile_delta, _LEAST_MARGIN)
