"""Many requests on one call: each message carries everything that all answers have gained since the one before.

The cost of the wire is per message, and a phase brings tokens for a whole batch at once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator

from serving.admission.refusals import draining
from serving.doors.wire import REFUSED, Refusal, check_id, fields_of, refusal_of, response_of, timeout_of
from serving.frontend import Frontend
from serving.live import Live
from serving.proto.exegpt.v1 import generation_pb2 as pb

_MESSAGE_BYTES = 2**20
"""A message is closed behind the response that makes it longer; clients take 4 MiB and more."""

_MOST_UNREAD_ERRORS = 256
"""Requests are read no further while so many refusals wait: a message may hold a million requests that cost nothing."""
_MOST_ECHOED = 128


class Session:
    """The requests of one call.

    Args:
      frontend: answers them.
      deadline_s: of them all, on time.monotonic's clock.

    Attributes:
      cut_short: why the call ends before the client was done, if it does.
    """

    def __init__(self, frontend: Frontend, deadline_s: float | None) -> None:
        self.cut_short: Refusal | None = None
        self._frontend = frontend
        self._deadline_s = deadline_s
        self._live: dict[str, Live] = {}
        # Ids whose answers have gained something, in the order of their gaining it.
        self._news: dict[str, None] = {}
        self._refused: asyncio.Queue[pb.RequestError] = asyncio.Queue(_MOST_UNREAD_ERRORS)
        self._ready = asyncio.Event()

    async def answer(
        self, requests: AsyncIterator[pb.GenerateStreamRequest]
    ) -> AsyncGenerator[pb.GenerateStreamResponse]:
        """Until the client has half-closed and everything is answered, or the server stops."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(self._has_read)
        self._frontend.on_drain.add(self._ready.set)
        if self._frontend.draining:
            # It began before this call did.
            self._ready.set()
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while message := self._message():
                    yield message
                if reading.done():
                    reading.result()
                if not self._live and (reading.done() or self._frontend.draining):
                    break
            if not reading.done():
                self.cut_short = refusal_of("", draining())
        finally:
            reading.cancel()
            self._frontend.on_drain.discard(self._ready.set)
            for live in self._live.values():
                self._frontend.end(live)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        # Looked at here too: the call may have ended for another reason.
        if not reading.cancelled():
            reading.exception()
        self._ready.set()

    async def _read(self, requests: AsyncIterator[pb.GenerateStreamRequest]) -> None:
        async for message in requests:
            for request in message.requests:
                await self._begin(request)
            for name in message.cancel_ids:
                self._cancel(name)

    async def _begin(self, request: pb.GenerateRequest) -> None:
        name = request.id
        try:
            check_id(name)
            if name in self._live:
                raise ValueError("id: is under way on this call; choose another")
            timeout_s = timeout_of(request)
            until_s = [self._deadline_s, None if timeout_s is None else time.monotonic() + timeout_s]
            deadline_s = min((each for each in until_s if each is not None), default=None)
            wake = functools.partial(self._wake, name)
            self._live[name] = await self._frontend.begin(fields_of(request), deadline_s, wake, name)
        except REFUSED as error:
            await self._refused.put(_error_of(name, error))
            self._ready.set()

    def _cancel(self, name: str) -> None:
        if (live := self._live.pop(name, None)) is not None:
            self._news.pop(name, None)
            self._frontend.end(live)
            # It may have been the last one that was waited for.
            self._ready.set()

    def _wake(self, name: str) -> None:
        self._news[name] = None
        self._ready.set()

    def _message(self) -> pb.GenerateStreamResponse | None:
        """What there is to say, up to a message's length; None for nothing."""
        message, size = pb.GenerateStreamResponse(), 0
        while self._news and size < _MESSAGE_BYTES:
            name = next(iter(self._news))
            del self._news[name]
            # Cancelled since, or the news are characters that are held back.
            if (live := self._live.get(name)) is None or not live.has_news:
                continue
            try:
                response = response_of(name, live.take())
            except REFUSED as error:
                message.errors.append(_error_of(name, error))
            else:
                message.responses.append(response)
                size += response.ByteSize()
            if live.ending is not None:
                self._frontend.end(self._live.pop(name))
        while not self._refused.empty():
            message.errors.append(self._refused.get_nowait())
        return message if message.responses or message.errors else None


def _error_of(name: str, error: Exception) -> pb.RequestError:
    """The end of a request other than well, in band."""
    refusal = refusal_of(name, error)
    code = int(refusal.code.value[0])
    entry = pb.RequestError(id=name[:_MOST_ECHOED], code=code, message=refusal.details, reason=refusal.reason)
    if refusal.retry_s is not None:
        entry.retry_after_s = refusal.retry_s
    return entry
