"""What happened when: one format from simulator and runner, so that predicted and measured lie side by side.

A Timeline keeps the last entries of a run and exports them as Chrome trace JSON, which ui.perfetto.dev opens.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Literal

Kind = Literal["encode", "decode", "move", "release"]

DEFAULT_CAPACITY = 100_000


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


@dataclasses.dataclass(frozen=True)
class KindSummary:
    """Entries of one kind: how many, their mean busy time, rows and tokens."""

    count: int
    mean_s: float
    mean_rows: float
    tokens: int


class Timeline:
    """A bounded record; the oldest entries fall out. One thread adds, any thread may read a copy."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._entries: collections.deque[TimelineEntry] = collections.deque(maxlen=capacity)

    def add(self, entry: TimelineEntry) -> None:
        self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TimelineEntry]:
        return iter(tuple(self._entries))

    def summary(self) -> dict[Kind, KindSummary]:
        """Means per kind, over what is kept."""
        grouped: dict[Kind, list[tuple[TimelineEntry, float]]] = collections.defaultdict(list)
        for entry, began_s in _with_begin(self):
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
        spans = [(began_s, entry.ready_s) for entry, began_s in _with_begin(self) if entry.stage == 0]
        if not spans or spans[-1][1] <= spans[0][0]:
            return 0.0
        return sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])

    def to_chrome_trace(self) -> str:
        """Trace-event JSON: a process per stage, a thread per kind, complete events in microseconds."""
        kinds: tuple[Kind, ...] = ("encode", "decode", "move", "release")
        events: list[dict[str, object]] = []
        for stage in sorted({entry.stage for entry in self}):
            events.append({"ph": "M", "name": "process_name", "pid": stage, "args": {"name": f"stage {stage}"}})
            for thread, kind in enumerate(kinds):
                events.append({"ph": "M", "name": "thread_name", "pid": stage, "tid": thread, "args": {"name": kind}})
        for entry, began_s in _with_begin(self):
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


def _with_begin(entries: Iterable[TimelineEntry]) -> Iterator[tuple[TimelineEntry, float]]:
    """Each entry with the moment from which its stage worked on it."""
    free_s: dict[int, float] = {}
    for entry in entries:
        began_s = min(max(entry.dispatched_s, free_s.get(entry.stage, entry.dispatched_s)), entry.ready_s)
        free_s[entry.stage] = entry.ready_s
        yield entry, began_s
