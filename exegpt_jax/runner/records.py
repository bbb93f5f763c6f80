"""Decisions about the traffic, each with the numbers that caused it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

from exegpt_jax.runner.adapt import Decision

Event = Literal["keep", "adjust", "beyond", "ask", "planned", "no plan", "swap", "swap failed"]
Number = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Record:
    """One decision.

    Attributes:
      at_s: on the Runner's clock.
      phase: that it was taken before.
      event: what was decided, or what came of it.
      numbers: that caused it.
    """

    at_s: float
    phase: int
    event: Event
    numbers: Mapping[str, Number]

    def line(self) -> str:
        return json.dumps({"event": self.event, "at_s": round(self.at_s, 6), "phase": self.phase, **self.numbers})


def numbers_of(decision: Decision) -> dict[str, Number]:
    """What was measured, and the schedule that it asks for."""
    schedule = decision.schedule
    measured = dataclasses.asdict(decision)
    for name in ("kind", "schedule", "means"):
        del measured[name]
    return {
        **measured,
        "encode_batch": schedule.encode_batch,
        "decode_iterations": schedule.decode_iterations,
        "decode_batch": schedule.decode_batch,
    }
