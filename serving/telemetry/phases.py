"""What phases took, beside what was predicted of them: read off the Timeline when somebody asks.

The Runner writes its Timeline anyway, so nothing here costs a phase any time. Each reading takes in what has come since
the one before; readings that lie farther apart than the Timeline reaches back miss what fell out of it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from serving.telemetry.histogram import PHASE_S, ROWS, Histogram
from solver.plan.timeline import Kind, News, Timeline, TimelineEntry, with_begin

Part = Kind | Literal["whole"]
PARTS: tuple[Part, ...] = ("encode", "decode", "whole")

WINDOW_S = 60.0
"""Ratios are those of the last minute."""
# Entries that are younger may have some beside them that are still being written.
_SETTLED_S = 0.05
# Phases of plans whose sides are apart are never closed.
_MOST_OPEN = 1024
# A reading must not keep the interpreter from the Runner for long; what is left is for the next one.
_MOST_PARTS = 4000


@dataclasses.dataclass(frozen=True)
class _Span:
    """Time that something took, and what was predicted where that is known."""

    end_s: float
    measured_s: float
    predicted_s: float | None = None


class PhaseLog:
    """Counts since the start, and spans of the last minute. To be used by one thread at a time.

    Args:
      timeline: to read.
      begun_s: when the run began, on its clock.

    Attributes:
      measured_s, predicted_s: by part of a phase: encode and decode on their devices, whole on the Runner's clock.
      rows: in an encode phase and in a decode phase.
    """

    def __init__(self, timeline: Timeline, begun_s: float) -> None:
        self._timeline, self._begun_s = timeline, begun_s
        self._news = News()
        self._unsettled: list[tuple[TimelineEntry, float]] = []
        self._free_s: dict[int, float] = {}
        self._open: collections.OrderedDict[int, list[TimelineEntry]] = collections.OrderedDict()
        self._unclosed: list[tuple[int, float]] = []
        self._spans: dict[Part, collections.deque[_Span]] = {part: collections.deque() for part in PARTS}
        self._busy: dict[int, collections.deque[_Span]] = collections.defaultdict(collections.deque)
        self.measured_s = {part: Histogram(PHASE_S) for part in PARTS}
        self.predicted_s = {part: Histogram(PHASE_S) for part in PARTS}
        self.rows: dict[Kind, Histogram] = {"encode": Histogram(ROWS), "decode": Histogram(ROWS)}

    def read(self, now_s: float) -> None:
        """Takes in what has come; `now_s` on the Runner's clock."""
        self._news = self._timeline.after(self._news)
        fresh = [*self._unsettled, *with_begin(self._news.entries, self._free_s)]
        groups: dict[tuple[int, Kind], list[tuple[TimelineEntry, float]]] = collections.defaultdict(list)
        for entry, began_s in fresh:
            groups[entry.phase, entry.kind].append((entry, began_s))
        self._unsettled = []
        for number, ((phase, kind), group) in enumerate(groups.items()):
            if number >= _MOST_PARTS or max(entry.ready_s for entry, _ in group) > now_s - _SETTLED_S:
                self._unsettled += group
            elif kind in self.rows:
                self._take(phase, kind, group)
        self._close(now_s)
        for spans in (*self._spans.values(), *self._busy.values()):
            while spans and spans[0].end_s < now_s - WINDOW_S:
                spans.popleft()

    def _take(self, phase: int, part: Kind, group: list[tuple[TimelineEntry, float]]) -> None:
        entries = [entry for entry, _ in group]
        measured_s = max(entry.ready_s for entry in entries) - min(began_s for _, began_s in group)
        self._count(part, entries, measured_s)
        self.rows[part].observe(_rows(entries))
        for entry, began_s in group:
            self._busy[entry.stage].append(_Span(entry.ready_s, entry.ready_s - began_s))
        self._open.setdefault(phase, []).extend(entries)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    def _close(self, now_s: float) -> None:
        """Phases that are over, once all of their entries are there."""
        unsettled = {entry.phase for entry, _ in self._unsettled}
        waiting, self._unclosed = [*self._unclosed, *self._news.turns], []
        for phase, turn_s in waiting:
            if phase in unsettled:
                self._unclosed.append((phase, turn_s))
            elif (entries := self._open.pop(phase, None)) is not None:
                self._count("whole", entries, turn_s)

    def _count(self, part: Part, entries: Sequence[TimelineEntry], measured_s: float) -> None:
        predicted_s = self._timeline.predicted_s(entries)
        self.measured_s[part].observe(measured_s)
        if predicted_s is not None:
            self.predicted_s[part].observe(predicted_s)
        self._spans[part].append(_Span(max(entry.ready_s for entry in entries), measured_s, predicted_s))

    def error_ratios(self) -> dict[Part, float]:
        """Of the last minute's phases that were predicted, by part: all their predicted time / measured - 1."""
        found: dict[Part, float] = {}
        for part, spans in self._spans.items():
            known = [(span.predicted_s, span.measured_s) for span in spans if span.predicted_s is not None]
            predicted_s, measured_s = (sum(each[at] for each in known) for at in (0, 1))
            if measured_s > 0:
                found[part] = predicted_s / measured_s - 1
        return found

    def busy_ratios(self, now_s: float) -> dict[int, float]:
        """Share of the last minute, or of the time since the run began, in which each stage worked."""
        begin_s = max(now_s - WINDOW_S, self._begun_s)
        return {stage: _share(spans, begin_s, now_s) for stage, spans in sorted(self._busy.items())}


def _share(spans: Iterable[_Span], begin_s: float, now_s: float) -> float:
    inside_s = sum(min(span.measured_s, span.end_s - begin_s) for span in spans if span.end_s > begin_s)
    return min(1.0, inside_s / (now_s - begin_s)) if now_s > begin_s else 0.0


def _rows(entries: Sequence[TimelineEntry]) -> int:
    """Of one part of a phase; each of its stages has entries of the same rows."""
    first = min(entry.stage for entry in entries)
    rows: dict[int, int] = {}
    for entry in entries:
        if entry.stage == first:
            rows[entry.micro_batch] = max(entry.rows, rows.get(entry.micro_batch, 0))
    return sum(rows.values())
