"""Many requests on one call: they are read while those that have come are answered."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Generic, TypeVar

from serving.admission.refusals import draining
from serving.doors.wire import Refusal, refusal_of
from serving.frontend import Frontend

_Asked = TypeVar("_Asked")
_Said = TypeVar("_Said")


class Conversation(abc.ABC, Generic[_Asked, _Said]):
    """One call. What its messages are is a protocol's.

    Args:
      frontend: answers the requests.
      deadline_s: of them all, on time.monotonic's clock.

    Attributes:
      cut_short: why the call ends before the client was done, if it does.
    """

    def __init__(self, frontend: Frontend, deadline_s: float | None) -> None:
        self.cut_short: Refusal | None = None
        self._frontend = frontend
        self._deadline_s = deadline_s
        # Set whenever `_say` may have something to say.
        self._ready = asyncio.Event()

    async def answer(self, requests: AsyncIterator[_Asked]) -> AsyncGenerator[_Said]:
        """Until the client has half-closed and all is answered, or the server stops, or it is cut short."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(self._has_read)
        self._frontend.on_drain.add(self._ready.set)
        if self._frontend.draining:
            # It began before this call did.
            self._ready.set()
        try:
            while self.cut_short is None:
                await self._ready.wait()
                self._ready.clear()
                while self.cut_short is None and (messages := self._say()) is not None:
                    for message in messages:
                        yield message
                if reading.done():
                    reading.result()
                if self._settled() and (reading.done() or self._frontend.draining):
                    break
            if not reading.done() and self.cut_short is None:
                self.cut_short = refusal_of("", draining())
        finally:
            reading.cancel()
            self._frontend.on_drain.discard(self._ready.set)
            self._leave()

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        # Looked at here too: the call may have ended for another reason.
        if not reading.cancelled():
            reading.exception()
        self._ready.set()

    @abc.abstractmethod
    async def _read(self, requests: AsyncIterator[_Asked]) -> None:
        """Begins each as it comes."""

    @abc.abstractmethod
    def _say(self) -> Sequence[_Said] | None:
        """The next messages, perhaps none of them; None where there is nothing to look at any more."""

    @abc.abstractmethod
    def _settled(self) -> bool:
        """Whether everything that was asked so far is answered."""

    @abc.abstractmethod
    def _leave(self) -> None:
        """Ends what is not answered."""
