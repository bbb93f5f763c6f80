"""Between the event loop, where requests live, and the Runner's thread, where their tokens are made.

Whoever is let in waits in `serving.admission` until the Runner has use for it. The Runner hands over one list of events
per part of a phase, with one `call_soon_threadsafe`. Here each event reaches its request: tokens become text, a stop
string ends the answer and frees its row, and whoever streams the answer takes everything that has come since it last
looked, so a slow reader gets fewer and larger messages.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Literal

from exegpt_jax.runner.events import Event, Tokens
from exegpt_jax.runner.request import Request
from exegpt_jax.text.answer import Ending
from exegpt_jax.text.prompts import ModelText, Prepared
from serving.admission.budget import UNSAID, QueueLimits, within_share
from serving.admission.gate import Gate
from serving.admission.refusals import (
    QUOTA_EXCEEDED,
    DeadlineUnreachable,
    Unavailable,
    draining,
)
from serving.backend import Backend
from serving.live_request import GenerationFailed, Live, Update
from serving.security.caller import CALLER
from serving.security.quota import OverQuota, Quota
from serving.telemetry.tally import Ended, Tally

_LOG = logging.getLogger(__name__)
_INLINE = 2048
"""Characters, or token ids: longer prompts are made ready on another thread than the event loop's."""


class Frontend:
    """Admission, live requests and the way to the Runner. Everything but `hand_over` runs on the event loop.

    Attributes:
      max_requests: requests admitted at once, running and waiting; more are refused as Unavailable. `key_limit` of
        them may be one key's; more of that one are OverQuota. `queue` bounds what waits otherwise.
      gate: whoever waits for the Runner.
      on_drain: called when it begins.
      on_ended: told of every request that was admitted, when nobody waits for it any more.
      tally: what is counted of requests.
    """

    def __init__(self, max_requests: int, key_limit: int | None = None, queue: QueueLimits = UNSAID) -> None:
        self.max_requests = max_requests
        self.gate = Gate(queue, max_requests, self._lost)
        self._quota = Quota("requests", key_limit)
        self.on_drain: set[Callable[[], None]] = set()
        self.on_ended: list[Callable[[Ended], None]] = []
        self.tally = Tally()
        self._loop = asyncio.get_running_loop()
        self._state: Literal["warming", "serving", "draining"] = "warming"
        self._text: ModelText | None = None
        self._runner: Backend | None = None
        self._live: dict[str, Live] = {}
        self._admitted = 0
        self._cut = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._numbers = itertools.count()

    @property
    def admitted(self) -> int:
        """Requests admitted and not answered yet."""
        return self._admitted

    @property
    def draining(self) -> bool:
        return self._state == "draining"

    @property
    def state(self) -> Literal["warming", "serving", "draining"]:
        return self._state

    @property
    def opened(self) -> tuple[ModelText, Backend] | None:
        """What answers; None while the server is warming up."""
        return None if self._text is None or self._runner is None else (self._text, self._runner)

    @property
    def live(self) -> list[Live]:
        """Requests that somebody waits for."""
        return list(self._live.values())

    def open(self, text: ModelText, runner: Backend) -> None:
        """Begins to admit requests."""
        self.gate.open(runner)
        self._text, self._runner, self._state = text, runner, "serving"

    def hand_over(self, events: list[Event]) -> None:
        """The Runner's callback, on the Runner's thread."""
        self._loop.call_soon_threadsafe(self.deliver, events)

    async def begin(
        self, fields: Mapping[str, object], deadline_s: float | None, wake: Callable[[], None], request_id: str = ""
    ) -> Live:
        """Admits one request; whoever begins it ends it, with `end`.

        Args:
          fields: prompt or messages, and parameters, as `ModelText.prepare` takes them, and `priority`.
          deadline_s: on time.monotonic's clock.
          wake: called whenever there is something to take.
          request_id: what its client calls it, for logs and traces.

        Raises:
          Unavailable, DeadlineUnreachable, OverQuota; ValueError for bad input, in one line.
        """
        try:
            return await self._begin(fields, deadline_s, wake, request_id)
        except ValueError:
            self.tally.refused("invalid", "INVALID_ARGUMENT")
            raise
        except OverQuota:
            self.tally.refused("refused", QUOTA_EXCEEDED)
            raise
        except (Unavailable, DeadlineUnreachable) as error:
            self.tally.refused("refused", error.reason)
            raise

    async def _begin(
        self, fields: Mapping[str, object], deadline_s: float | None, wake: Callable[[], None], request_id: str
    ) -> Live:
        text = self._admit()
        live = None
        try:
            given = dict(fields)
            priority = _priority(given.pop("priority", None))
            prepared = await _prepare(text, given)
            if self._cut:
                raise draining()
            live = Live(str(next(self._numbers)), prepared, text, wake, request_id)
            self._live[live.number] = live
            self._queue(live, deadline_s, priority)
        # Whatever it is: nobody else can give the place back.
        except BaseException:
            self._forget(live, CALLER.get())
            raise
        return live

    def end(self, live: Live) -> None:
        """Nobody waits for it any more; its row is freed if it has not ended."""
        self._leave_gate(live)
        self._forget(live, live.caller)
        self._tell(live)

    async def stream(
        self, fields: Mapping[str, object], deadline_s: float | None, request_id: str = ""
    ) -> AsyncGenerator[Update]:
        """Answers one request. Leaving early cancels it. Arguments and errors as of `begin` and `Live.take`."""
        ready = asyncio.Event()
        live = await self.begin(fields, deadline_s, ready.set, request_id)
        try:
            ended = False
            while not ended:
                await ready.wait()
                ready.clear()
                if live.has_news:
                    update = live.take()
                    ended = update.ending is not None
                    yield update
        finally:
            self.end(live)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits until the admitted ones are answered; False if time ran out."""
        self._state = "draining"
        for wake in self.on_drain:
            wake()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def cut_short(self) -> None:
        """Ends whoever waits for the Runner, and lets nobody else wait: the server stops now."""
        self._cut = True
        self.gate.cut_short()

    def _admit(self) -> ModelText:
        if self._state == "draining":
            raise draining()
        if self._text is None or self._runner is None:
            raise Unavailable("the server is warming up", 1.0, "WARMING_UP")
        if self._admitted >= self.max_requests:
            line = f"{self._admitted} requests are waiting or running, which is the limit"
            raise Unavailable(line, self.gate.retry_s(), "QUEUE_FULL")
        self._quota.check()
        own = self._quota.under_way
        if CALLER.get() is not None and not within_share(own, self._admitted, self.max_requests):
            line = f"{own} requests of this key are waiting or running, which is its share now"
            raise Unavailable(line, self.gate.retry_s(), "QUEUE_SHARE_USED")
        self._quota.enter()
        self._admitted += 1
        self._idle.clear()
        return self._text

    def _forget(self, live: Live | None, caller: str | None) -> None:
        if live is not None:
            self._live.pop(live.number, None)
        self._quota.leave(caller)
        self._admitted -= 1
        if self._admitted == 0:
            self._idle.set()

    def _queue(self, live: Live, deadline_s: float | None, priority: int) -> None:
        parameters = live.prepared.parameters
        request = Request(
            id=live.number,
            prompt_ids=live.prepared.prompt_ids,
            sampling=parameters.sampling,
            arrival_s=live.arrival_s,
            deadline_s=deadline_s,
        )
        can_stop = bool(parameters.sampling.stop_ids or parameters.stop)
        live.forecast = self.gate.admit(request, key=live.caller, priority=priority, can_stop=can_stop)

    def _lost(self, number: str, error: Exception) -> None:
        """It ended while it waited for the Runner."""
        live = self._live.get(number)
        if live is not None and live.ending is None:
            live.ending = error
            live.wake()

    def _leave_gate(self, live: Live) -> None:
        """It has ended, or nobody wants it any more: it waits no longer, or its row is freed."""
        handed = self.gate.leave(live.number, answered=isinstance(live.ending, Ending))
        if handed and self._runner is not None:
            self._runner.cancel(live.number)

    def deliver(self, events: list[Event]) -> None:
        """Each event to its request; on the event loop."""
        self.gate.hear(events)
        for event in events:
            live = self._live.get(event.id)
            # Cancelled, or ended by a stop string before the Runner knew.
            if live is not None and live.ending is None:
                self._deliver_to(live, event)

    def _deliver_to(self, live: Live, event: Event) -> None:
        try:
            if isinstance(event, Tokens):
                self._push(live, event)
            else:
                live.finish(event)
        # One request's text must not cost its batch-mates their tokens.
        except Exception as error:
            _LOG.exception("delivering to a request failed", extra={"request_id": live.request_id})
            live.ending = GenerationFailed(type(error).__name__)
        if live.ending is not None:
            handed = self.gate.leave(live.number, answered=isinstance(live.ending, Ending))
            if handed and isinstance(event, Tokens) and self._runner is not None:
                self._runner.cancel(event.id)
        live.wake()

    def _push(self, live: Live, event: Tokens) -> None:
        before_s, before = live.last_s, live.tokens
        live.push(event)
        if not before_s:
            self.tally.began(len(live.prepared.prompt_ids), live.first_s - live.arrival_s)
        self.tally.grew(live.tokens - before, live.last_s - before_s if before_s else None)

    def _tell(self, live: Live) -> None:
        ended = live.ended()
        self.tally.ended(ended)
        for tell in self.on_ended:
            try:
                tell(ended)
            # Whoever looks on must not cost those who wait their answers.
            except Exception:
                _LOG.exception("telling of the end of a request failed", extra={"request_id": live.request_id})


def _priority(given: object) -> int:
    if given is None:
        return 0
    if isinstance(given, bool) or not isinstance(given, int) or not -(2**31) <= given < 2**31:
        raise ValueError(f"priority: {str(given)[:60]!r} is not an integer of 32 bits; lower is earlier, 0 if absent")
    return given


async def _prepare(text: ModelText, fields: Mapping[str, object]) -> Prepared:
    prompt = fields.get("prompt")
    if isinstance(prompt, Sequence) and len(prompt) <= _INLINE:
        return text.prepare(fields)
    return await asyncio.to_thread(text.prepare, fields)
