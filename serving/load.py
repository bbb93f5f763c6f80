"""A load on a server, from this process: who asks what when, and what came back when.

Open loop: each request has its own time and is sent then, however slow the server is. Closed loop: a fixed number of
requests is in flight, the next one is sent when one ends. One asyncio loop, one channel; one call per request, or one
for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from serving.client import AsyncClient, AsyncSession, Parameters, Prompt, ServerError


@dataclasses.dataclass(frozen=True)
class LoadRequest:
    """One request of a load.

    Attributes:
      prompt: text, token ids or messages.
      parameters: under the protocol's names.
      at_s: when to send it, from the load's start; closed loops ignore it.
    """

    prompt: Prompt
    parameters: Parameters = dataclasses.field(default_factory=lambda: Parameters())
    at_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class LoadResult:
    """What became of one request; times in seconds from the load's start.

    Attributes:
      index: its place in the load.
      planned_s: when it should have been sent (closed loop: was sent); latencies count from here.
      sent_s, first_token_s, last_token_s: on the client's clock; NaN for what did not happen.
      text, token_ids, finish_reason: the answer, as far as it came.
      error: None, or "CODE: details".
      encode_to_last_s: the server's word for the time from the start of the encode phase to the last token.
    """

    index: int
    planned_s: float
    sent_s: float
    first_token_s: float
    last_token_s: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    error: str | None
    encode_to_last_s: float

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_token_s - self.planned_s

    @property
    def latency_with_wait_s(self) -> float:
        return self.last_token_s - self.planned_s


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
    gate = asyncio.Semaphore(concurrency or len(requests) or 1)
    start_s = time.monotonic()

    async def ask(client: AsyncClient | AsyncSession, index: int) -> LoadResult:
        request = requests[index]
        if concurrency is None:
            await asyncio.sleep(start_s + request.at_s - time.monotonic())
        async with gate:
            planned_s = request.at_s if concurrency is None else time.monotonic() - start_s
            result = await _ask(client, index, request, start_s, planned_s, timeout_s)
        if on_result is not None:
            on_result(result)
        return result

    async with AsyncClient(address) as client, contextlib.AsyncExitStack() as stack:
        asked = await stack.enter_async_context(client.session()) if one_call else client
        return list(await asyncio.gather(*(ask(asked, index) for index in range(len(requests)))))


async def _ask(
    client: AsyncClient | AsyncSession,
    index: int,
    request: LoadRequest,
    start_s: float,
    planned_s: float,
    timeout_s: float | None,
) -> LoadResult:
    sent_s, first_s, last_s = time.monotonic() - start_s, math.nan, math.nan
    texts: list[str] = []
    token_ids: list[int] = []
    reason, error, encode_to_last_s = None, None, math.nan
    try:
        async for chunk in client.stream(request.prompt, timeout_s=timeout_s, **request.parameters):
            texts.append(chunk.text)
            if chunk.token_ids:
                last_s = time.monotonic() - start_s
                first_s = first_s if token_ids else last_s
                token_ids.extend(chunk.token_ids)
            if chunk.finish is not None:
                reason = chunk.finish.reason
                if chunk.finish.encode_start_s is not None:
                    encode_to_last_s = chunk.finish.last_token_s - chunk.finish.encode_start_s
    except ServerError as refused:
        error = str(refused)
    return LoadResult(
        index=index,
        planned_s=planned_s,
        sent_s=sent_s,
        first_token_s=first_s,
        last_token_s=last_s,
        text="".join(texts),
        token_ids=tuple(token_ids),
        finish_reason=reason,
        error=error,
        encode_to_last_s=encode_to_last_s,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of them do not exceed (nearest rank); NaN of nothing."""
    ranked = sorted(value for value in values if not math.isnan(value))
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


@dataclasses.dataclass(frozen=True)
class LoadSummary:
    """A load in numbers; times in seconds, of requests that were answered."""

    requests: int
    errors: int
    seconds: float
    tokens: int
    requests_per_s: float
    tokens_per_s: float
    time_to_first_token_p50_s: float
    time_to_first_token_p99_s: float
    latency_p50_s: float
    latency_p99_s: float


def summarise(results: Sequence[LoadResult]) -> LoadSummary:
    """From the first planned request to the last token."""
    answered = [result for result in results if result.error is None]
    begin_s = min((result.planned_s for result in results), default=0.0)
    seconds = max((result.last_token_s for result in answered), default=begin_s) - begin_s
    tokens = sum(len(result.token_ids) for result in answered)
    first = [result.time_to_first_token_s for result in answered]
    whole = [result.latency_with_wait_s for result in answered]
    return LoadSummary(
        requests=len(results),
        errors=len(results) - len(answered),
        seconds=seconds,
        tokens=tokens,
        requests_per_s=len(answered) / seconds if seconds > 0 else 0.0,
        tokens_per_s=tokens / seconds if seconds > 0 else 0.0,
        time_to_first_token_p50_s=percentile(first, 50),
        time_to_first_token_p99_s=percentile(first, 99),
        latency_p50_s=percentile(whole, 50),
        latency_p99_s=percentile(whole, 99),
    )
