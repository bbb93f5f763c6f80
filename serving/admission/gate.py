"""Admission by the plan: who is let in, and who goes to the engine next.

    admit -> bounded queue, fair and by priority -> as many as the engine's next phases can take -> leave

So priorities and shares decide late, and who gives up while waiting costs the engine nothing. A deadline that the
prediction (`serving.admission.outlook`) does not reach is refused at once, and so is a wait for which the plan's
latency bound from arrival has no room. For whoever has to wait a margin stands for what such predictions fell short by,
and a share of the wait: behind a queue as long as deadlines allow, one stall would make everybody late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from exegpt_jax.runner.events import Event
from exegpt_jax.runner.limits import check
from exegpt_jax.runner.request import Request
from serving.admission.budget import QueueLimits, Size, check_alone, lacking, size_of, within_share
from serving.admission.fair_queue import FairQueue
from serving.admission.outlook import Outlook
from serving.admission.pace import Pace
from serving.admission.refusals import DeadlinePassed, DeadlineUnreachable, Unavailable, draining
from serving.admission.ticket import Forecast, Ticket
from serving.backend import Backend

_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.05, 30.0
_UNKNOWN_RETRY_S = 0.5
# Of a predicted wait, for stalls that have not been seen yet.
_STALLS = 0.1


class Gate:
    """Everything on the event loop.

    Args:
      limits: of the queue.
      max_requests: admitted at once, for limits that follow from it.
      on_lost: told of a request that ends while it waits here, and why.

    Attributes:
      held: what waits here.
      limits: of that, in force.
    """

    def __init__(self, limits: QueueLimits, max_requests: int, on_lost: Callable[[str, Exception], None]) -> None:
        self.held = self.limits = Size()
        self._given, self._max_requests, self._on_lost = limits, max_requests, on_lost
        self._queue: FairQueue[Ticket] = FairQueue()
        self._tickets: dict[str, Ticket] = {}
        self._handing = False
        self._backend: Backend | None = None
        self._outlook: Outlook | None = None

    def open(self, backend: Backend) -> None:
        """A run begins."""
        self._backend, self._outlook = backend, Outlook(backend)
        self.limits = self._given.resolved(backend.plan, self._max_requests)

    def follow(self) -> None:
        """Another plan is in force; who was admitted stays so."""
        backend, outlook = self._running()
        outlook.pace.follow(backend.plan)
        self.limits = self._given.resolved(backend.plan, self._max_requests)
        self._hand_soon()

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return len(self._queue)

    @property
    def pace(self) -> Pace | None:
        """None while nothing runs."""
        return None if self._outlook is None else self._outlook.pace

    def admit(self, request: Request, *, key: str | None, priority: int, can_stop: bool) -> Forecast | None:
        """Queues a request, and hands over what the engine has use for.

        Args:
          request: a name that no other has, and its arrival set.
          key: whose share it takes from.
          priority: lower is earlier.
          can_stop: its answer may end before its `max_tokens`.

        Raises:
          ValueError, Unavailable, DeadlineUnreachable.
        """
        backend, outlook = self._running()
        check(request, backend.plan)
        expected = outlook.pace.expected_tokens(request.sampling, can_stop=can_stop)
        ticket = Ticket(request, key, can_stop, expected, size_of(request))
        check_alone(ticket.size, self.limits)
        self._check_room(ticket)
        now_s = time.monotonic()
        ahead = outlook.untaken + self._queue.ahead_of(key, priority)
        ticket.forecast = outlook.forecast(expected, ahead, now_s)
        self._check_deadline(ticket, now_s)
        self._check_bound(ticket, now_s)
        self._tickets[request.id] = ticket
        self._queue.push(request.id, ticket, key=key, priority=priority, cost=ticket.cost)
        self.held = self.held.plus(ticket.size)
        outlook.arrived(ticket)
        if request.deadline_s is not None:
            ticket.timer = asyncio.get_running_loop().call_at(request.deadline_s, self._overdue, request.id)
        self._hand_soon()
        return ticket.forecast

    def leave(self, name: str, *, answered: bool) -> bool:
        """It has ended, or nobody wants it any more; whether the engine had it. Unknown ones have left before."""
        ticket = self._tickets.pop(name, None)
        if ticket is None:
            return False
        _, outlook = self._running()
        outlook.left(ticket)
        if self._queue.remove(name) is not None:
            self._put_down(ticket)
        else:
            used = len(ticket.request.prompt_ids) + ticket.told if ticket.told else 0
            self._queue.settle(ticket.key, used - ticket.cost)
        self._hand_soon()
        if answered:
            if ticket.can_stop:
                outlook.pace.answered(ticket.told, ticket.request.sampling.max_tokens)
            self._miss(ticket, ticket.told_s)
        return ticket.handed

    def hear(self, events: Sequence[Event]) -> None:
        """What the engine handed over at once, before anybody else hears it."""
        if self._outlook is not None:
            self._outlook.hear(events, self._tickets, time.monotonic())
            self._hand_soon()

    def _hand_soon(self) -> None:
        """Behind whatever else comes or goes in this turn of the loop: who is next is asked once."""
        if len(self._queue) and not self._handing:
            self._handing = True
            asyncio.get_running_loop().call_soon(self._hand)

    def _hand(self) -> None:
        """Hands the engine what its next phases can take."""
        self._handing = False
        backend, outlook = self._running()
        now_s, room = time.monotonic(), outlook.window - outlook.untaken
        handed: list[Ticket] = []
        while len(self._queue) and len(handed) < room:
            ticket = self._queue.pop()
            self._put_down(ticket)
            error: Exception | None = self._hopeless(ticket, len(handed), now_s)
            if error is None:
                try:
                    backend.submit(ticket.request)
                except ValueError:
                    # It was checked when it came: what has changed is that the engine ends.
                    error = draining()
            if error is None:
                ticket.handed = True
                handed.append(ticket)
            else:
                self._lose(ticket, error)
        outlook.hand(handed, now_s)

    def cut_short(self) -> None:
        """Ends whatever waits here: the server stops."""
        for ticket in list(self._queue):
            self._lose(ticket, draining())

    def retry_s(self) -> float:
        """When it makes sense to ask again: a request that came now, behind everybody else, would start then."""
        now_s = time.monotonic()
        outlook = self._outlook
        forecast = None if outlook is None else outlook.forecast(1, outlook.untaken + len(self._queue), now_s)
        return _UNKNOWN_RETRY_S if forecast is None else _sensible_s(forecast.start_s - now_s)

    # Checks.

    def _check_room(self, ticket: Ticket) -> None:
        found = lacking(ticket.size, self.held, self.limits)
        if found is not None and self._handing:
            # What the engine has use for fills the queue only until this turn of the loop ends.
            self._hand()
            found = lacking(ticket.size, self.held, self.limits)
        if found is not None:
            raise Unavailable(found[1], self.retry_s(), found[0])
        own = self._queue.cost_of(ticket.key)
        if ticket.key is not None and not within_share(own, self.held.tokens, self.limits.tokens):
            line = f"{own} tokens of this key are waiting, which is its share of the queue now"
            raise Unavailable(line, self.retry_s(), "QUEUE_SHARE_USED")

    def _check_deadline(self, ticket: Ticket, now_s: float) -> None:
        deadline_s, forecast = ticket.request.deadline_s, ticket.forecast
        if deadline_s is not None:
            end_s = now_s if forecast is None else forecast.end_s + self._margin_s(forecast, now_s)
            if end_s >= deadline_s:
                raise DeadlineUnreachable(end_s - now_s, deadline_s - now_s)

    def _check_bound(self, ticket: Ticket, now_s: float) -> None:
        plan, forecast = self._running()[0].plan, ticket.forecast
        bounds, prediction = plan.bounds, plan.prediction
        if bounds is None or bounds.latency_s is None or bounds.bound_from == "encode" or prediction is None:
            return
        if forecast is None or not forecast.waits:
            return
        room_s = bounds.latency_s - prediction.latency_s
        wait_s = forecast.start_s + self._margin_s(forecast, now_s) - now_s
        if wait_s > room_s:
            line = f"the wait of about {wait_s:.3g} s is more than the {room_s:.3g} s that the latency bound leaves"
            raise Unavailable(line, _sensible_s(wait_s - room_s), "BOUND_UNREACHABLE")

    def _margin_s(self, forecast: Forecast, now_s: float) -> float:
        """What the prediction of one that has to wait may fall short by."""
        if not forecast.waits:
            return 0.0
        return self._running()[1].pace.margin_s + _STALLS * max(forecast.start_s - now_s, 0.0)

    def _hopeless(self, ticket: Ticket, ahead: int, now_s: float) -> DeadlineUnreachable | None:
        """Of one that has waited until it cannot be answered in time any more: no row is to be wasted on it."""
        _, outlook = self._running()
        deadline_s, ahead = ticket.request.deadline_s, ahead + outlook.untaken
        forecast = None if deadline_s is None else outlook.forecast(ticket.expected_tokens, ahead, now_s)
        if deadline_s is None or forecast is None or forecast.end_s < deadline_s:
            return None
        self._miss(ticket, forecast.end_s)
        return DeadlineUnreachable(forecast.end_s - now_s, deadline_s - now_s)

    # Ends.

    def _overdue(self, name: str) -> None:
        """Its deadline has passed while it waited here."""
        ticket = self._tickets[name]
        self._miss(ticket, time.monotonic())
        self._lose(ticket, DeadlinePassed())

    def _lose(self, ticket: Ticket, error: Exception) -> None:
        self.leave(ticket.request.id, answered=False)
        self._on_lost(ticket.request.id, error)

    def _put_down(self, ticket: Ticket) -> None:
        """It waits here no more."""
        self.held = self.held.minus(ticket.size)
        if ticket.timer is not None:
            ticket.timer.cancel()

    def _miss(self, ticket: Ticket, end_s: float) -> None:
        if ticket.forecast is not None and ticket.forecast.waits:
            self._running()[1].pace.missed(end_s - ticket.forecast.end_s)

    def _running(self) -> tuple[Backend, Outlook]:
        assert self._backend is not None, "opened before anything is asked"
        assert self._outlook is not None, "as above"
        return self._backend, self._outlook


def _sensible_s(retry_s: float) -> float:
    return min(max(retry_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
