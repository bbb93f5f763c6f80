"""What the engine is at and will do next, as far as the front end can tell from what it was handed and hands over.

    start  = boundary + phases ahead x period
    finish = start + phases of the answer x period

`boundary` is when the phase under way ends; phases ahead are those of `serving.admission.starts`, the plan's policy
played forward over the rows that are there; the period is the plan's (`Prediction.period_s`: ExeGPT's encode phase plus
N_D iterations) until phases were seen, then what they took lately (`serving.admission.pace`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from exegpt_jax.runner.events import Event, Finished, Tokens
from serving.admission.pace import Pace
from serving.admission.starts import Starts, admitted, iterations_of, phases_of
from serving.admission.ticket import Forecast, Ticket
from serving.backend import Backend
from solver.plan.correction import most_encoded
from solver.plan.schedule import Schedule
from solver.plan.under_way import works_apart

# Phases shorter than this may begin before the front end has answered the one before.
_ANSWER_S = 0.05
_MOST_PHASES_HANDED = 4


class Outlook:
    """Of one run.

    Attributes:
      pace: of its phases.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.pace = Pace(backend.plan)
        # The engine has them, in the order in which it got them.
        self._handed: dict[str, Ticket] = {}
        self._taken = 0
        # Of those that no phase has taken, here or with the engine.
        self._waiting = self._waiting_tokens = self._waiting_prompts = 0
        self._boundary_s = 0.0
        # Since something last changed, by the mean residence of those who wait.
        self._starts: dict[int, Starts] = {}

    @property
    def _schedule(self) -> Schedule:
        return self._backend.plan.schedule

    @property
    def untaken(self) -> int:
        """Requests with the engine that no phase has taken yet."""
        return len(self._handed) - self._taken

    @property
    def window(self) -> int:
        """The most of them: what the next phase can take, several times where phases are short."""
        schedule, period_s = self._schedule, self.pace.period_s.value
        most = most_encoded(schedule) if iterations_of(schedule) > 1 else schedule.most_rows
        free = schedule.most_rows - self._taken
        phases = 2 if period_s is None else min(1 + math.ceil(_ANSWER_S / max(period_s, 1e-4)), _MOST_PHASES_HANDED)
        return phases * min(max(free, schedule.encode_batch), most)

    # A request's way.

    def arrived(self, ticket: Ticket) -> None:
        self._count(ticket, 1)

    def hand(self, tickets: Sequence[Ticket], now_s: float) -> None:
        """The engine has them."""
        idle = not self._handed
        self._handed |= {ticket.request.id: ticket for ticket in tickets}
        if idle and tickets:
            # It begins a phase with them.
            self._boundary_s = now_s
            self._expect_taken()
            self._starts.clear()

    def left(self, ticket: Ticket) -> None:
        """It is out of the queue or its row; may be told twice."""
        if ticket.out:
            return
        ticket.out = True
        self._starts.clear()
        self._handed.pop(ticket.request.id, None)
        if ticket.taken:
            self._taken -= 1
        else:
            self._count(ticket, -1)

    def hear(self, events: Sequence[Event], tickets: Mapping[str, Ticket], now_s: float) -> None:
        """What the engine handed over at once."""
        boundary = False
        for event in events:
            ticket = tickets.get(event.id)
            if ticket is None:
                continue
            if isinstance(event, Finished):
                self.left(ticket)
            else:
                boundary |= self._told(ticket, event, now_s, measure=not boundary)
        self._starts.clear()
        if boundary:
            self._boundary_s = now_s
            self._expect_taken()

    # Predictions.

    def forecast(self, tokens: int, ahead: int, now_s: float) -> Forecast | None:
        """Of a request that would start behind `ahead` others; None before anything is known of phases."""
        period_s, schedule = self.pace.period_s.value, self._schedule
        if period_s is None:
            return None
        next_s = min(max(self._boundary_s + period_s, now_s), now_s + period_s) if self._handed else now_s
        boundary = self._look_ahead().boundary_of(ahead)
        start_s, encode_s = next_s + boundary * period_s, self.pace.encode_s.value or 0.0
        if tokens == 1:
            return Forecast(start_s, start_s + encode_s, waits=boundary > 0)
        # Apart, a prompt is encoded beside the phases and not within one.
        before_s = encode_s if works_apart(schedule) else 0.0
        return Forecast(start_s, start_s + before_s + phases_of(schedule, tokens) * period_s, waits=boundary > 0)

    def _look_ahead(self) -> Starts:
        schedule, waiting = self._schedule, max(self._waiting, 1)
        residence = phases_of(schedule, math.ceil(self._waiting_tokens / waiting))
        if residence not in self._starts:
            rows = [ticket for ticket in self._handed.values() if ticket.taken]
            ends = [phases_of(schedule, ticket.expected_tokens, ticket.told) - 1 for ticket in rows]
            self._starts[residence] = Starts(schedule, ends, residence, self._waiting_prompts / waiting)
        return self._starts[residence]

    # What has happened.

    def _told(self, ticket: Ticket, event: Tokens, now_s: float, *, measure: bool) -> bool:
        """Tokens of a request; whether they come from a decode part, behind which the next phase begins."""
        first = not ticket.told
        self._take(ticket)
        ticket.told += len(event.token_ids)
        ticket.told_s = now_s
        if first:
            self.pace.encode_s.observe(max(now_s - event.encode_start_s, 0.0))
            ticket.phase_s = event.encode_start_s or now_s
            return False
        if measure and len(event.token_ids) >= iterations_of(self._schedule):
            self.pace.phase_took(now_s - ticket.phase_s)
        ticket.phase_s = now_s
        return True

    def _expect_taken(self) -> None:
        """A phase begins: marks whom it takes, as the policy says; tokens confirm it later."""
        waiting = [ticket for ticket in self._handed.values() if not ticket.taken]
        if waiting:
            prompt_tokens = sum(len(ticket.request.prompt_ids) for ticket in waiting) / len(waiting)
            for ticket in waiting[: admitted(self._schedule, self._taken, len(waiting), prompt_tokens)]:
                self._take(ticket)

    def _take(self, ticket: Ticket) -> None:
        if not ticket.taken:
            ticket.taken = True
            self._taken += 1
            self._count(ticket, -1)

    def _count(self, ticket: Ticket, change: int) -> None:
        """Among those who wait."""
        self._waiting += change
        self._waiting_tokens += change * ticket.expected_tokens
        self._waiting_prompts += change * len(ticket.request.prompt_ids)
