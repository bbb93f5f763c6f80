"""What the front end keeps of a request while an engine process works on it: enough to ask another one to go on.

A token depends on what stands before it and on the request's seed alone, so a new engine that encodes the prompt and
what was told of the answer continues it as the old one would have.
"""

from __future__ import annotations

import dataclasses
import time

from exegpt_jax.runner.events import Finished, Reason, Times, Tokens
from exegpt_jax.runner.limits import check
from exegpt_jax.runner.request import Request
from solver.plan.plan import Plan

_MOST_DEATHS = 3
"""So many engines that died between two tokens of a request may have died of it."""


@dataclasses.dataclass
class Kept:
    """A request whose last event has not come.

    Attributes:
      request: as it was asked; its arrival is set.
      told_ids: tokens that came so far.
      deaths: engines that died at work since the last of them.
    """

    request: Request
    told_ids: list[int] = dataclasses.field(default_factory=list)
    deaths: int = 0

    def add(self, event: Tokens) -> None:
        self.told_ids.extend(event.token_ids)
        self.deaths = 0

    def ended(self, reason: Reason, detail: str = "", stop_token: int | None = None) -> Finished:
        """Its last event, where no engine can tell it."""
        asked = self.request
        return Finished(
            id=asked.id,
            reason=reason,
            stop_token=stop_token,
            detail=detail,
            prompt_tokens=len(asked.prompt_ids),
            completion_tokens=len(asked.generated_ids) + len(self.told_ids),
            times=Times(asked.arrival_s or 0.0, last_token_s=time.monotonic() if reason in ("stop", "length") else 0.0),
        )

    def go_on(self, plan: Plan) -> Request | Finished:
        """What to ask a new engine, or the end if there is nothing left to ask."""
        if not self.told_ids:
            return self.request
        if self.deaths >= _MOST_DEATHS:
            return self.ended("error", f"{self.deaths} engine processes died while they worked on it")
        told, sampling = (*self.request.generated_ids, *self.told_ids), self.request.sampling
        if told[-1] in sampling.stop_ids and len(told) > sampling.min_tokens:
            return self.ended("stop", stop_token=told[-1])
        if len(told) >= sampling.max_tokens:
            return self.ended("length")
        request = dataclasses.replace(self.request, generated_ids=told)
        try:
            check(request, plan)
        except ValueError as error:
            return self.ended("abort", f"the engine was restarted in the middle of the answer ({error})")
        return request
