"""What is expected of phases when one plan follows another: each phase is predicted by the plan that it ran under."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from solver.plan.timeline import Predictor, TimelineEntry


class Successive:
    """Predictors in turn. One thread adds, any thread may read.

    Args:
      first: of the plan that a run begins with; None: nothing is predicted of its phases.
    """

    def __init__(self, first: Predictor | None) -> None:
        self._phases = [0]
        self._predictors = [first]

    def go_on(self, phase: int, predictor: Predictor | None) -> None:
        """From this phase on another predicts."""
        # In this order, so that whoever reads meanwhile finds one for every phase.
        self._predictors.append(predictor)
        self._phases.append(phase)

    def entry_s(self, entry: TimelineEntry) -> float | None:
        predictor = self._of(entry.phase)
        return None if predictor is None else predictor.entry_s(entry)

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        predictor = self._of(entries[0].phase) if entries else None
        return None if predictor is None else predictor.phase_s(entries)

    def _of(self, phase: int) -> Predictor | None:
        return self._predictors[bisect.bisect_right(self._phases, phase) - 1]
