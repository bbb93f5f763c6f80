"""Many requests on one call: each message carries everything that all answers have gained since the one before.

The cost of the wire is per message, and a phase brings tokens for a whole batch at once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator

from serving.doors.conversation import Conversation
from serving.doors.wire import REFUSED, check_id, fields_of, refusal_of, response_of, timeout_of
from serving.frontend import Frontend
from serving.live_request import Live
from serving.proto.exegpt.v1 import generation_pb2 as pb

_MESSAGE_BYTES = 2**20
"""A message is closed behind the response that makes it longer; clients take 4 MiB and more."""

_MOST_UNREAD_ERRORS = 256
"""Requests are read no further while so many refusals wait: a message may hold a million requests that cost nothing."""
_MOST_ECHOED = 128


class Session(Conversation[pb.GenerateStreamRequest, pb.GenerateStreamResponse]):
    """The requests of one call of GenerateStream, by the ids that the client chose."""

    def __init__(self, frontend: Frontend, deadline_s: float | None) -> None:
        super().__init__(frontend, deadline_s)
        self._live: dict[str, Live] = {}
        # Ids whose answers have gained something, in the order of their gaining it.
        self._news: dict[str, None] = {}
        self._refused: asyncio.Queue[pb.RequestError] = asyncio.Queue(_MOST_UNREAD_ERRORS)

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

    def _settled(self) -> bool:
        return not self._live and self._refused.empty()

    def _leave(self) -> None:
        for live in self._live.values():
            self._frontend.end(live)

    def _say(self) -> list[pb.GenerateStreamResponse] | None:
        """One message, up to its length."""
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
        return [message] if message.responses or message.errors else None


def _error_of(name: str, error: Exception) -> pb.RequestError:
    """The end of a request other than well, in band."""
    refusal = refusal_of(name, error)
    code = int(refusal.code.value[0])
    entry = pb.RequestError(id=name[:_MOST_ECHOED], code=code, message=refusal.details, reason=refusal.reason)
    if refusal.retry_s is not None:
        entry.retry_after_s = refusal.retry_s
    return entry
