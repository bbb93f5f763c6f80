"""The n answers to one request, side by side: what each has gained, as it comes.

The engine knows single answers only. Here n of them are begun with seeds in a row, share one reader, and end together
when the client leaves or somebody aborts the request.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Mapping

from serving.frontend import Frontend
from serving.live_request import Live, Update

MAX_CHOICES = 8


class Choices:
    """Begin them, read `updates`, and `close` whatever happened."""

    def __init__(self, frontend: Frontend, request_id: str) -> None:
        self._frontend = frontend
        self._request_id = request_id
        self._live: dict[int, Live] = {}
        # Those that have gained something, in the order of their gaining it.
        self._news: dict[int, None] = {}
        self._aborted: list[int] = []
        self._is_aborted = False
        self._ready = asyncio.Event()

    async def begin(self, fields: Mapping[str, object], count: int, deadline_s: float | None) -> None:
        """Admits all of them or raises; arguments and errors as of `Frontend.begin`."""
        if not 1 <= count <= MAX_CHOICES:
            raise ValueError(f"n: {count} is not an integer in [1, {MAX_CHOICES}]")
        first = await self._begin(0, fields, deadline_s)
        sampling = first.prepared.parameters.sampling
        if count > 1 and sampling.temperature == 0:
            raise ValueError(f"n: {count} answers without sampling are all the same; give a temperature above 0 or n=1")
        # Tokenised once; seeds in a row make the whole set repeatable.
        fields = {**fields, "prompt": first.prepared.prompt_ids}
        for index in range(1, count):
            await self._begin(index, {**fields, "seed": sampling.seed + index}, deadline_s)
        if self._is_aborted:
            self.abort()

    async def updates(self) -> AsyncGenerator[tuple[int, Update | None]]:
        """Index and gain, until every answer has ended; None for one that was aborted. Raises as `Live.take`."""
        while self._live or self._aborted:
            await self._ready.wait()
            self._ready.clear()
            while self._news:
                index = next(iter(self._news))
                del self._news[index]
                live = self._live.get(index)
                # Aborted since, or the news are characters that are held back.
                if live is None or not live.has_news:
                    continue
                update = live.take()
                if update.ending is not None:
                    self._frontend.end(self._live.pop(index))
                yield index, update
            while self._aborted:
                yield self._aborted.pop(0), None

    def abort(self) -> None:
        """Ends what has not ended, for its reader too."""
        self._is_aborted = True
        self._aborted.extend(self._live)
        self.close()
        self._ready.set()

    def close(self) -> None:
        """Gives back what is still under way."""
        while self._live:
            self._frontend.end(self._live.popitem()[1])

    async def _begin(self, index: int, fields: Mapping[str, object], deadline_s: float | None) -> Live:
        live = await self._frontend.begin(fields, deadline_s, functools.partial(self._wake, index), self._request_id)
        self._live[index] = live
        return live

    def _wake(self, index: int) -> None:
        self._news[index] = None
        self._ready.set()
