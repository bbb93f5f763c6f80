"""What the demo's two processes tell each other: JSON objects, one a line.

The client writes orders to the worker's standard input; the worker says on its standard output what it does. The load
itself goes over gRPC.
"""

from __future__ import annotations

import dataclasses
import json
from typing import IO, Literal

from solver.plan.timeline import Timeline, TimelineEntry

Do = Literal["profile", "serve", "stop"]
Step = Literal["say", "profiled", "serving", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Order:
    """To the worker.

    Attributes:
      do: "profile": write the model's profile to `path`; "serve": run the plan in `path`, with fresh figures; "stop":
        end it and tell the figures.
      path: of a file.
      given: a profile to take instead of measuring one.
      max_rows: of the profile.
      budget_s: of the profile.
      anew: measure even where an earlier demo has.
    """

    do: Do
    path: str = ""
    given: str = ""
    max_rows: int = 0
    budget_s: float = 0.0
    anew: bool = False

    def send(self, stream: IO[str]) -> None:
        _send(self, stream)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the worker measured of one plan under load.

    Attributes:
      fields: as `serving.beside.Beside.fields`.
      latency_s: p99 of every request, from the start of its encode phase.
      lines: the same for people.
      entries: of the timeline, of some phases in the middle.
    """

    fields: dict[str, object]
    latency_s: float
    lines: tuple[str, ...]
    entries: tuple[dict[str, object], ...] = ()

    def timeline(self) -> Timeline:
        timeline = Timeline()
        for entry in self.entries:
            timeline.add(TimelineEntry(**entry))  # type: ignore[arg-type]
        return timeline


@dataclasses.dataclass(frozen=True)
class Message:
    """From the worker.

    Attributes:
      step: "say": a line for the operator; "profiled"; "serving": ready for load; "stopped"; "failed": it ends.
      text: the line; of "serving" the address; of "profiled" what was measured.
      figures: of "stopped".
    """

    step: Step
    text: str = ""
    figures: Figures | None = None

    def send(self, stream: IO[str]) -> None:
        _send(self, stream)


def _send(said: Order | Message, stream: IO[str]) -> None:
    stream.write(json.dumps(dataclasses.asdict(said)) + "\n")
    stream.flush()


def parse_order(line: str) -> Order:
    return Order(**json.loads(line))


def parse(line: str) -> Message:
    fields = json.loads(line)
    figures = fields.pop("figures")
    if figures is not None:
        # JSON knows lists alone.
        figures = Figures(**{**figures, "lines": tuple(figures["lines"]), "entries": tuple(figures["entries"])})
    return Message(**fields, figures=figures)
