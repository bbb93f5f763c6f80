"""A load on a server, from this process: who is asked when, and each result as it ends.

Open loop: each request has its own time and is sent then, however slow the server is. Closed loop: a fixed number of
requests is in flight, the next one is sent when one ends. One asyncio loop, one channel; one call per request, or one
for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from serving.client import AsyncClient, AsyncSession, ServerError
from serving.load.results import LoadRequest, LoadResult

Numbered = tuple[int, LoadRequest]


class Loop:
    """Sends requests, and hands each result on as it ends. One `open` or `closed` at a time.

    Args:
      asked: whom to ask.
      start_s: of the load, on time.monotonic's clock.
      timeout_s: deadline of each request.
      on_result: called for each request as it ends.
    """

    def __init__(
        self,
        asked: AsyncClient | AsyncSession,
        start_s: float,
        *,
        timeout_s: float | None,
        on_result: Callable[[LoadResult], None],
    ) -> None:
        self._asked = asked
        self._start_s = start_s
        self._timeout_s = timeout_s
        self._on_result = on_result
        self._stopped = False
        self._sending: asyncio.Task[None] | None = None
        self._going = asyncio.Event()
        self._going.set()

    async def open(self, requests: Iterable[Numbered]) -> None:
        """Sends each at its `at_s`, in that order; returns when all have ended."""
        async with asyncio.TaskGroup() as group:
            self._sending = group.create_task(self._send(group, requests))

    async def closed(self, requests: Iterable[Numbered], concurrency: int, until_s: float = math.inf) -> None:
        """Keeps `concurrency` in flight, and begins none after `until_s` of the load; returns when all have ended."""
        waiting = iter(requests)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._in_turn(waiting, until_s))

    def hold(self, held: bool) -> None:
        """While held, a closed loop begins nothing; an open loop has its times and keeps them."""
        if held:
            self._going.clear()
        else:
            self._going.set()

    def stop(self) -> None:
        """No further request is sent; those in flight go on."""
        self._stopped = True
        if self._sending is not None:
            self._sending.cancel()

    async def _send(self, group: asyncio.TaskGroup, requests: Iterable[Numbered]) -> None:
        for index, request in requests:
            # Also where it is late already: who sends without a pause never hears an answer.
            await asyncio.sleep(max(0.0, request.at_s - self._now_s()))
            group.create_task(self._ask(index, request, request.at_s))

    async def _in_turn(self, waiting: Iterator[Numbered], until_s: float) -> None:
        while not self._stopped and self._now_s() < until_s and (following := next(waiting, None)) is not None:
            await self._ask(*following, self._now_s())
            await self._going.wait()

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    async def _ask(self, index: int, request: LoadRequest, planned_s: float) -> None:
        sent_s, encode_to_first_s, encode_to_last_s = self._now_s(), math.nan, math.nan
        texts: list[str] = []
        token_ids: list[int] = []
        message_s: list[float] = []
        message_tokens: list[int] = []
        reason, error, prompt_tokens = None, None, 0
        try:
            async for chunk in self._asked.stream(request.prompt, timeout_s=self._timeout_s, **request.parameters):
                texts.append(chunk.text)
                if chunk.token_ids:
                    message_s.append(self._now_s())
                    message_tokens.append(len(chunk.token_ids))
                    token_ids.extend(chunk.token_ids)
                if (finish := chunk.finish) is not None:
                    reason, prompt_tokens = finish.reason, finish.prompt_tokens
                    if finish.encode_start_s is not None:
                        encode_to_first_s = finish.first_token_s - finish.encode_start_s
                        encode_to_last_s = finish.last_token_s - finish.encode_start_s
            if reason is None:
                error = "DATA_LOSS: the stream ended without a finish"
        except ServerError as refused:
            error = str(refused)
        self._on_result(
            LoadResult(
                index=index,
                planned_s=planned_s,
                sent_s=sent_s,
                first_token_s=message_s[0] if message_s else math.nan,
                last_token_s=message_s[-1] if message_s else math.nan,
                text="".join(texts),
                token_ids=tuple(token_ids),
                finish_reason=reason,
                error=error,
                encode_to_last_s=encode_to_last_s,
                encode_to_first_s=encode_to_first_s,
                prompt_tokens=prompt_tokens,
                message_s=tuple(message_s),
                message_tokens=tuple(message_tokens),
            )
        )


def run_load(
    address: str,
    requests: Sequence[LoadRequest],
    *,
    concurrency: int | None = None,
    timeout_s: float | None = None,
    one_call: bool = False,
    on_result: Callable[[LoadResult], None] | None = None,
) -> list[LoadResult]:
    """Runs a load and returns the results in the requests' order.

    Args:
      address: the server's.
      requests: what to ask.
      concurrency: requests in flight (closed loop); None sends each at its `at_s` (open loop).
      timeout_s: deadline of each request.
      one_call: of GenerateStream, for all requests, at a small part of the cost; else each has a call of its own.
      on_result: called for each request as it ends, for a live display.
    """
    return asyncio.run(
        run_load_async(
            address, requests, concurrency=concurrency, timeout_s=timeout_s, one_call=one_call, on_result=on_result
        )
    )


async def run_load_async(
    address: str,
    requests: Sequence[LoadRequest],
    *,
    concurrency: int | None = None,
    timeout_s: float | None = None,
    one_call: bool = False,
    on_result: Callable[[LoadResult], None] | None = None,
) -> list[LoadResult]:
    """`run_load` inside a running loop."""
    results: list[LoadResult] = []

    def keep(result: LoadResult) -> None:
        results.append(result)
        if on_result is not None:
            on_result(result)

    async with AsyncClient(address, retries=False) as client, contextlib.AsyncExitStack() as stack:
        asked = await stack.enter_async_context(client.session()) if one_call else client
        loop = Loop(asked, time.monotonic(), timeout_s=timeout_s, on_result=keep)
        if concurrency is None:
            await loop.open(sorted(enumerate(requests), key=lambda numbered: numbered[1].at_s))
        else:
            await loop.closed(enumerate(requests), concurrency)
    return sorted(results, key=lambda result: result.index)
