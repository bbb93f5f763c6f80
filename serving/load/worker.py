"""One process of a load: `python -m serving.load.worker`, with its job, then the start, as lines on standard input.

It says "ready" when it is connected and warm, then tells each result as it ends, and itself last. It stops when its
input ends; when nobody listens any more it sends nothing further.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator

from serving.client import AsyncClient, AsyncSession
from serving.load.loop import Loop, Numbered
from serving.load.messages import Job, line, parse_job, sample_line, sample_of
from serving.load.results import LoadResult

_CONNECT_S = 5.0
_GONE_S = 2.0
"""So long nobody may listen before the server counts as gone; a listening one is found at once."""
_LAG_EVERY_S = 0.02
_FLUSH_S = 0.1
_WARMUP_NUMBER = 2**40
"""Requests of the warm-up are numbered from here, so that none of their prompts comes again."""


def main() -> int:
    job = parse_job(sys.stdin.buffer.readline())
    try:
        asyncio.run(_work(job))
    except (ValueError, OSError) as error:
        sys.stdout.write(line("failed", " ".join(str(error).split())))
    return 0


async def _work(job: Job) -> None:
    async with (
        AsyncClient(job.address, key=job.key, tls=job.tls, retries=False) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        if not await client.reachable(_CONNECT_S):
            raise ValueError(f"address: nobody answers at {job.address}; start exegpt serve there or name another")
        await _warm_up(job, client)
        session = await stack.enter_async_context(client.session()) if job.one_call else None
        # What lives through the load leaves the collector's sight: a full collection would delay every request.
        gc.collect()
        gc.freeze()
        sys.stdout.write(line("ready"))
        sys.stdout.flush()
        start = await asyncio.to_thread(sys.stdin.buffer.readline)
        if start:
            await _measure(job, client, session, float(start))


async def _warm_up(job: Job, client: AsyncClient) -> None:
    """Raises ValueError where none of it is answered: a load of the same kind would not be either."""
    results: list[LoadResult] = []
    loop = Loop(client, time.monotonic(), timeout_s=job.timeout_s, on_result=results.append)
    numbers = itertools.count(_WARMUP_NUMBER + job.first, job.step)
    await loop.open((number, job.demand.request(number, 0.0)) for number in itertools.islice(numbers, job.warmup))
    errors = [result.error for result in results if result.error is not None]
    if errors and len(errors) == len(results):
        raise ValueError(f"warmup: not answered: {errors[0]}")


async def _measure(job: Job, client: AsyncClient, session: AsyncSession | None, start_s: float) -> None:
    lag_s: list[float] = []
    watch = _Watch(client, session)

    def keep(result: LoadResult) -> None:
        sys.stdout.write(sample_line(sample_of(result, job.first)))
        if result.error is not None and result.error.startswith("UNAVAILABLE"):
            watch.look(loop)

    loop = Loop(session or client, start_s, timeout_s=job.timeout_s, on_result=keep)
    await asyncio.sleep(start_s - time.monotonic())
    cpu_s, began_s = time.process_time(), time.monotonic()
    beside = [asyncio.create_task(_lag(lag_s)), asyncio.create_task(_flush())]
    running = asyncio.create_task(_run(job, loop))
    with _when_input_ends(running.cancel), contextlib.suppress(asyncio.CancelledError):
        await running
    for task in (*beside, *watch.looking):
        task.cancel()
    cpu_share = (time.process_time() - cpu_s) / max(time.monotonic() - began_s, 1e-9)
    sys.stdout.write(line("end", cpu_share, [round(lag, 6) for lag in lag_s], watch.lost))


@contextlib.contextmanager
def _when_input_ends(stop: Callable[[], object]) -> Iterator[None]:
    """Calls `stop` once."""
    loop, source = asyncio.get_running_loop(), sys.stdin.fileno()

    def ended() -> None:
        loop.remove_reader(source)
        stop()

    loop.add_reader(source, ended)
    try:
        yield
    finally:
        loop.remove_reader(source)


async def _run(job: Job, loop: Loop) -> None:
    numbers = itertools.count(job.first, job.step)
    if job.at_s is not None:
        await loop.open(_at(job, zip(numbers, job.at_s, strict=False)))
    else:
        own = itertools.islice(numbers, job.count)
        await loop.closed(_at(job, ((number, 0.0) for number in own)), job.concurrency, job.until_s)


def _at(job: Job, times: Iterator[tuple[int, float]]) -> Iterator[Numbered]:
    """Each request is made when it is asked for, which is before its time has come."""
    return ((number, job.demand.request(number, at_s)) for number, at_s in times)


class _Watch:
    """Finds out, when a request was not taken, whether the server is gone or only had no room.

    Attributes:
      lost: why the load ended before its time; None while it did not.
      looking: tasks under way.
    """

    def __init__(self, client: AsyncClient, session: AsyncSession | None) -> None:
        self.lost: str | None = None
        self.looking: set[asyncio.Task[None]] = set()
        self._client = client
        self._session = session

    def look(self, loop: Loop) -> None:
        if not self.looking and self.lost is None:
            loop.hold(True)
            task = asyncio.create_task(self._look(loop))
            self.looking.add(task)
            task.add_done_callback(self.looking.discard)

    async def _look(self, loop: Loop) -> None:
        if self._session is not None:
            ended = self._session.ended
            lost = None if ended is None else str(ended)
        else:
            lost = None if await self._client.reachable(_GONE_S) else "nobody listens there any more"
        if lost is not None:
            self.lost = lost
            loop.stop()
        loop.hold(False)


async def _lag(lag_s: list[float]) -> None:
    while True:
        due_s = time.monotonic() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        lag_s.append(max(0.0, time.monotonic() - due_s))


async def _flush() -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
