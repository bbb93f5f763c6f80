"""What happened when: one format from simulator and runner, so that predicted and measured lie side by side.

A Timeline keeps the last entries of a run and exports them as Chrome trace JSON, which ui.perfetto.dev opens. What the
plan predicts for an entry is worked out when somebody reads it, so that it costs no phase any time.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

Kind = Literal["encode", "decode", "move", "release"]

DEFAULT_CAPACITY = 100_000
_Each = TypeVar("_Each")


@dataclasses.dataclass(frozen=True)
class TimelineEntry:
    """One part of one phase on one stage.

    Attributes:
      phase: running number.
      kind: what was done.
      stage: index in the plan.
      dispatched_s: when it was handed to the device, on the run's clock.
      ready_s: when its result was there. The device worked on it from the later of `dispatched_s` and the ready time of
        the entry before on its stage.
      rows: requests in it.
      tokens: prompt tokens encoded, or tokens generated.
      iterations: decode iterations that ran; 0 for other kinds.
      rows_bucket, tokens_bucket: the compiled shape; for several encode calls the largest.
      calls: encode: compiled rows and tokens of each call.
      micro_batch: which encode call, or which part of the decode batch, where each has entries of its own.
      iteration: of the phase, the entry's first; with several stages each iteration has entries of its own.
      tensor: devices that worked on it; 0 where nobody says.
      predicted_s: what the plan's profile says that the stage works on it; None where nothing is predicted.
    """

    phase: int
    kind: Kind
    stage: int
    dispatched_s: float
    ready_s: float
    rows: int
    tokens: int
    iterations: int = 0
    rows_bucket: int = 0
    tokens_bucket: int = 0
    calls: tuple[tuple[int, int], ...] = ()
    micro_batch: int = 0
    iteration: int = 0
    tensor: int = 0
    predicted_s: float | None = None


class Predictor(Protocol):
    """What a plan expects of phases; `solver.simulate.predicted` is one. Called by whoever reads a Timeline."""

    def entry_s(self, entry: TimelineEntry) -> float | None:
        """Seconds that the entry's stage works on it; None where it cannot be said."""
        ...

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        """Seconds of a whole phase with these entries, from its beginning to that of the next."""
        ...


@dataclasses.dataclass(frozen=True)
class PhaseTime:
    """One phase as a whole.

    Attributes:
      phase: running number.
      measured_s: of the runner's whole turn, its own work included.
      predicted_s: the same, predicted; None where nothing is.
    """

    phase: int
    measured_s: float
    predicted_s: float | None

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        if self.predicted_s is None or self.measured_s <= 0:
            return None
        return self.predicted_s / self.measured_s - 1


@dataclasses.dataclass(frozen=True, eq=False)
class News:
    """What a Timeline has gained, and where to go on.

    Attributes:
      entries: without predictions.
      turns: (phase, seconds) of phases that were closed.
      last_entry, last_turn: the newest there are; None: there were none.
    """

    entries: tuple[TimelineEntry, ...] = ()
    turns: tuple[tuple[int, float], ...] = ()
    last_entry: TimelineEntry | None = None
    last_turn: tuple[int, float] | None = None


@dataclasses.dataclass(frozen=True)
class KindSummary:
    """Entries of one kind: how many, their mean busy time, rows and tokens."""

    count: int
    mean_s: float
    mean_rows: float
    tokens: int


class Timeline:
    """A bounded record; the oldest entries fall out. One thread adds, any thread may read a copy."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY, predictor: Predictor | None = None) -> None:
        self._entries: collections.deque[TimelineEntry] = collections.deque(maxlen=capacity)
        self._turns: collections.deque[tuple[int, float]] = collections.deque(maxlen=capacity)
        self._predictor = predictor

    def add(self, entry: TimelineEntry) -> None:
        self._entries.append(entry)

    def close(self, phase: int, turn_s: float) -> None:
        """Ends a phase whose entries are all added; `turn_s`: what the runner took for it, from the end of the one
        before (or of its waiting for requests) to now.
        """
        self._turns.append((phase, turn_s))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TimelineEntry]:
        return map(self._predicted, tuple(self._entries))

    def _predicted(self, entry: TimelineEntry) -> TimelineEntry:
        if self._predictor is None or entry.predicted_s is not None:
            return entry
        predicted_s = self._predictor.entry_s(entry)
        return entry if predicted_s is None else dataclasses.replace(entry, predicted_s=predicted_s)

    def after(self, before: News) -> News:
        """What has come since; of what has fallen out in between nobody hears."""
        # What was added last is known by its identity, so that adding need not count.
        entries = _behind(tuple(self._entries), before.last_entry)
        turns = _behind(tuple(self._turns), before.last_turn)
        return News(
            entries,
            turns,
            entries[-1] if entries else before.last_entry,
            turns[-1] if turns else before.last_turn,
        )

    def predicted_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        """Of a phase with these entries, which may be those of its one part only; None where nothing is predicted."""
        return None if self._predictor is None else self._predictor.phase_s(entries)

    def phases(self) -> list[PhaseTime]:
        """Every phase that was closed and whose entries are kept."""
        entries: dict[int, list[TimelineEntry]] = collections.defaultdict(list)
        for entry in tuple(self._entries):
            entries[entry.phase].append(entry)
        return [
            PhaseTime(phase, turn_s, self.predicted_s(entries[phase]))
            for phase, turn_s in tuple(self._turns)
            if phase in entries
        ]

    def summary(self) -> dict[Kind, KindSummary]:
        """Means per kind, over what is kept."""
        grouped: dict[Kind, list[tuple[TimelineEntry, float]]] = collections.defaultdict(list)
        for entry, began_s in with_begin(self):
            grouped[entry.kind].append((entry, entry.ready_s - began_s))
        return {
            kind: KindSummary(
                count=len(rows),
                mean_s=statistics.fmean(busy_s for _, busy_s in rows),
                mean_rows=statistics.fmean(entry.rows for entry, _ in rows),
                tokens=sum(entry.tokens for entry, _ in rows),
            )
            for kind, rows in grouped.items()
        }

    def busy_share(self) -> float:
        """Share of the time from first dispatch to last result in which some entry was under way; 0 if empty."""
        spans = [(began_s, entry.ready_s) for entry, began_s in with_begin(self) if entry.stage == 0]
        if not spans or spans[-1][1] <= spans[0][0]:
            return 0.0
        return sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])

    def to_chrome_trace(self, since_s: float = 0.0) -> str:
        """Trace-event JSON: a process per stage, a thread per kind, complete events in microseconds.

        Args:
          since_s: entries that were ready before are left out.
        """
        shown = [(entry, began_s) for entry, began_s in with_begin(tuple(self._entries)) if entry.ready_s >= since_s]
        kinds: tuple[Kind, ...] = ("encode", "decode", "move", "release")
        events: list[dict[str, object]] = []
        for stage in sorted({entry.stage for entry, _ in shown}):
            events.append({"ph": "M", "name": "process_name", "pid": stage, "args": {"name": f"stage {stage}"}})
            for thread, kind in enumerate(kinds):
                events.append({"ph": "M", "name": "thread_name", "pid": stage, "tid": thread, "args": {"name": kind}})
        for bare, began_s in shown:
            entry = self._predicted(bare)
            arguments = {k: v for k, v in dataclasses.asdict(entry).items() if k not in ("kind", "stage")}
            events.append(
                {
                    "ph": "X",
                    "name": f"{entry.kind} {entry.rows} rows",
                    "cat": entry.kind,
                    "pid": entry.stage,
                    "tid": kinds.index(entry.kind),
                    "ts": began_s * 1e6,
                    "dur": (entry.ready_s - began_s) * 1e6,
                    "args": arguments,
                }
            )
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})

    def write_chrome_trace(self, path: pathlib.Path) -> None:
        """Writes the trace whole or not at all."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(self.to_chrome_trace(), encoding="utf-8")
        os.replace(partial, path)


def with_begin(
    entries: Iterable[TimelineEntry], free_s: dict[int, float] | None = None
) -> Iterator[tuple[TimelineEntry, float]]:
    """Each entry with the moment from which its stage worked on it.

    Args:
      free_s: when each stage was ready with what came before; kept up to date.
    """
    free_s = {} if free_s is None else free_s
    for entry in entries:
        began_s = min(max(entry.dispatched_s, free_s.get(entry.stage, entry.dispatched_s)), entry.ready_s)
        free_s[entry.stage] = entry.ready_s
        yield entry, began_s


def _behind(kept: tuple[_Each, ...], last: _Each | None) -> tuple[_Each, ...]:
    """What stands behind `last`; all, if that has fallen out."""
    for back in range(len(kept), 0, -1):
        if kept[back - 1] is last:
            return kept[back:]
    return kept
