"""One admitted request as admission sees it, and when it is predicted to start and to end."""

from __future__ import annotations

import asyncio
import dataclasses

from exegpt_jax.runner.request import Request
from serving.admission.budget import Size


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Moments on time.monotonic's clock.

    Attributes:
      start_s: its encode phase begins.
      end_s: its last token is handed over.
      waits: not with the next phase.
    """

    start_s: float
    end_s: float
    waits: bool


@dataclasses.dataclass
class Ticket:
    """Waits in the front end's queue, then with the engine, then it is on the devices.

    Attributes:
      request: for the engine.
      key: whose share it takes from.
      can_stop: its answer may end before its `max_tokens`.
      expected_tokens: of its answer, when it was admitted.
      size: what it takes of the queue.
      forecast: when it was admitted; None where nothing was known.
      handed: the engine has it.
      taken: it is on the devices, or a phase has begun that will have taken it.
      out: neither any more.
      told: tokens handed over.
      told_s: when the last of them were.
      phase_s: when the phase began that the next ones come from.
      timer: ends it at its deadline while it waits here.
    """

    request: Request
    key: str | None
    can_stop: bool
    expected_tokens: int
    size: Size
    forecast: Forecast | None = None
    handed: bool = False
    taken: bool = False
    out: bool = False
    told: int = 0
    told_s: float = 0.0
    phase_s: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def cost(self) -> int:
        """Tokens that its key is charged for, until it is known better."""
        return len(self.request.prompt_ids) + self.expected_tokens
