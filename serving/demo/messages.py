"""What the demo's two processes tell each other: JSON objects, one a line.

The client writes orders to the worker's standard input; the worker says on its standard output what it does. The load
itself goes over gRPC.
"""

from __future__ import annotations

import dataclasses
import json
from typing import IO, Any, Literal

from solver.plan.timeline import Timeline, TimelineEntry

Do = Literal["serve", "again", "stop"]
Step = Literal["say", "serving", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Order:
    """To the worker.

    Attributes:
      do: "serve": run what the flags of `exegpt serve` say; "stop": end it and tell the figures; "again": run it from
        the beginning, with fresh figures.
      flags: of "serve".
    """

    do: Do
    flags: tuple[str, ...] = ()

    def send(self, stream: IO[str]) -> None:
        _send(self, stream)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the engine measured of one plan.

    Attributes:
      fields: predicted beside measured, as `serving.beside` has it.
      latency_s: at the bound's percentile, from the start of the encode phase, over every request.
      lines: the same for people.
      entries: of the timeline, a few phases from the middle.
    """

    fields: dict[str, Any]
    latency_s: float
    lines: tuple[str, ...]
    entries: tuple[dict[str, Any], ...]

    def timeline(self) -> Timeline:
        timeline = Timeline()
        for entry in self.entries:
            timeline.add(TimelineEntry(**entry))
        return timeline


@dataclasses.dataclass(frozen=True)
class Message:
    """From the worker.

    Attributes:
      step: "say": a line for the operator; "serving": ready for load; "stopped"; "failed": it ends.
      text: the line; of "serving" the address.
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
    fields = json.loads(line)
    # JSON knows lists alone.
    return Order(**{**fields, "flags": tuple(fields["flags"])})


def parse(line: str) -> Message:
    fields = json.loads(line)
    figures = fields.pop("figures")
    if figures is not None:
        figures = Figures(**{**figures, "lines": tuple(figures["lines"]), "entries": tuple(figures["entries"])})
    return Message(**fields, figures=figures)
