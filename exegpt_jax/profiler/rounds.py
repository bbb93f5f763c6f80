"""The loop that takes samples: compile what the budget allows, then round after round over all points.

Rounds are interleaved, so that a slow minute of the machine falls on every point and not on one; the median over rounds
is what counts. Level 0 of the grid is always measured once; everything else yields to the budget.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from exegpt_jax.profiler.grid import Point
from exegpt_jax.profiler.journal import Journal
from exegpt_jax.profiler.probe import Probe

Progress = Callable[[int, int, str], None]
"""Called with samples taken, samples in all, and what was measured last."""

# A median needs three; with less time left than that takes, no further point is begun.
_FEWEST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      deadline_s: on `time.monotonic`.
      repeats: samples of each point, where the time suffices.
    """

    deadline_s: float
    repeats: int


def take_samples(
    points: Sequence[Point], open_probe: Callable[[Point], Probe], journal: Journal, effort: Effort, progress: Progress
) -> int:
    """Fills the journal; returns how many points have samples. Points come in order of importance."""
    total = len(points) * effort.repeats
    probes: list[Probe] = []
    round_s = opening_s = 0.0

    def taken() -> int:
        return sum(min(len(journal.samples[point.key]), effort.repeats) for point in points)

    for point in points:
        missing = effort.repeats - len(journal.samples[point.key])
        if missing <= 0:
            continue
        began_s = time.monotonic()
        needed_s = opening_s / max(1, len(probes)) + min(missing, _FEWEST_REPEATS) * round_s
        must = point.level == 0 and not journal.samples[point.key]
        if not must and probes and began_s + needed_s > effort.deadline_s:
            continue
        if not must and began_s > effort.deadline_s:
            continue
        probe = open_probe(point)
        probes.append(probe)
        opened_s = time.monotonic()
        _take(probe, journal)
        round_s += time.monotonic() - opened_s
        opening_s += opened_s - began_s
        progress(taken(), total, point.key)
    for _ in range(effort.repeats - 1):
        for probe in probes:
            if time.monotonic() + round_s / len(probes) > effort.deadline_s:
                break
            if len(journal.samples[probe.point.key]) < effort.repeats:
                _take(probe, journal)
                progress(taken(), total, probe.point.key)
    return sum(bool(journal.samples[point.key]) for point in points)


def _take(probe: Probe, journal: Journal) -> None:
    journal.add(probe.point.key, probe.sample())
