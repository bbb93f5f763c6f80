"""A load that stands on a server for as long as a test wants, and checks every token: by calls, over one call, by the
Open Inference Protocol, and requests with a deadline that may end early but not late."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exegpt_jax.engine.api import Sampling
from exegpt_jax.testing.fake import answer
from serving.client import AsyncClient, AsyncSession, ServerError
from serving.load.loop import Loop
from serving.load.results import LoadRequest, LoadResult
from serving.proto.inference import inference_pb2_grpc
from tests.serving.open_inference import ask, read
from tests.serving.servers import VOCABULARY

LATE_S = 5.0
"""What a machine that does other things too may add to a deadline; a lost engine would add more."""
_SERVING = health_pb2.HealthCheckResponse.SERVING


def prompts(seed: int) -> Iterator[tuple[list[int], int]]:
    """Token ids and how many more to ask for: all together few enough to be encoded again."""
    rng = random.Random(seed)
    while True:
        yield [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 16))], rng.randint(1, 80)


def expected(prompt: list[int], tokens: int) -> tuple[int, ...]:
    return answer(prompt, Sampling(max_tokens=tokens), VOCABULARY)


class StandingLoad:
    """Begins with the block and asks no more when the block ends; then `check` what came.

    Attributes:
      ended: requests.
      deadlines: of those, how many ended by their deadline.
      wrong: a line about each that did not end as it should.
    """

    def __init__(self, address: str, model: Path) -> None:
        self.ended = self.deadlines = 0
        self.wrong: list[str] = []
        self._address, self._tokens_model = address, f"{model.resolve().name}_tokens"
        self._asked: dict[int, tuple[list[int], int]] = {}
        self._stopped = False

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[StandingLoad]:
        async with AsyncClient(self._address, retries=False) as client, client.session() as session:
            loops = [self._loop(client), self._loop(session)]
            tasks = [
                asyncio.create_task(loops[0].closed(self._requests(1), 16)),
                asyncio.create_task(loops[1].closed(self._requests(2), 16)),
                *(asyncio.create_task(self._with_deadlines(session, seed)) for seed in range(10, 16)),
                *(asyncio.create_task(self._open_inference(seed)) for seed in range(20, 24)),
            ]
            try:
                yield self
                self._stopped = True
                for loop in loops:
                    loop.stop()
                await asyncio.wait_for(asyncio.gather(*tasks), 120)
            finally:
                for task in tasks:
                    task.cancel()

    async def more(self, count: int, timeout_s: float = 60.0) -> None:
        """Waits until so many more have ended."""
        end_s, until = time.monotonic() + timeout_s, self.ended + count
        while self.ended < until:
            assert time.monotonic() < end_s, "nothing is answered any more"
            await asyncio.sleep(0.01)

    def _loop(self, asked: AsyncClient | AsyncSession) -> Loop:
        return Loop(asked, time.monotonic(), timeout_s=None, on_result=self._take)

    def _requests(self, seed: int) -> Iterator[tuple[int, LoadRequest]]:
        for number, (prompt, tokens) in zip(itertools.count(seed * 10**6), prompts(seed)):
            self._asked[number] = prompt, tokens
            yield number, LoadRequest(prompt, {"max_tokens": tokens, "ignore_eos": True})

    def _take(self, result: LoadResult) -> None:
        self.ended += 1
        prompt, tokens = self._asked.pop(result.index)
        if result.error is not None:
            self.wrong.append(result.error)
        elif result.token_ids != expected(prompt, tokens):
            self.wrong.append(f"other tokens: {len(result.token_ids)} came of {tokens}")

    async def _with_deadlines(self, session: AsyncSession, seed: int) -> None:
        rng = random.Random(seed)
        for prompt, tokens in prompts(seed):
            if self._stopped:
                return
            timeout_s, begin_s, came = rng.uniform(0.05, 3.0), time.monotonic(), []
            try:
                # The server's to keep: over a session the client's side has no clock of its own.
                async for chunk in session.stream(prompt, timeout_s=timeout_s, max_tokens=tokens, ignore_eos=True):
                    came.extend(chunk.token_ids)
            except ServerError as error:
                self.deadlines += 1
                if error.code != "DEADLINE_EXCEEDED":
                    self.wrong.append(str(error))
            else:
                if len(came) != tokens:
                    self.wrong.append(f"{len(came)} tokens of {tokens}, and no error")
            if tuple(came) != expected(prompt, tokens)[: len(came)]:
                self.wrong.append("other tokens before the deadline")
            if (late_s := time.monotonic() - begin_s - timeout_s) > LATE_S:
                self.wrong.append(f"ended {late_s:.1f} s behind its deadline")
            self.ended += 1

    async def _open_inference(self, seed: int) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            for prompt, tokens in prompts(seed):
                if self._stopped:
                    return
                sampling = {"max_tokens": tokens, "ignore_eos": True}
                request = ask(self._tokens_model, input_ids=prompt, sampling_parameters=sampling)
                try:
                    came = read(await stub.ModelInfer(request))["output_ids"]
                except grpc.aio.AioRpcError as error:
                    self.wrong.append(f"{error.code().name}: {error.details()}")
                else:
                    if tuple(came) != expected(prompt, tokens):
                        self.wrong.append("other tokens by the Open Inference Protocol")
                self.ended += 1


class WatchedHealth:
    """What health says, and since when."""

    def __init__(self) -> None:
        self.said: list[tuple[bool, float]] = []

    @contextlib.asynccontextmanager
    async def watching(self, address: str) -> AsyncIterator[WatchedHealth]:
        async def watch(channel: grpc.aio.Channel) -> None:
            async for told in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                self.said.append((told.status == _SERVING, time.monotonic()))

        async with grpc.aio.insecure_channel(address) as channel:
            task = asyncio.create_task(watch(channel))
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def turns(self, serving: bool, timeout_s: float = 60.0) -> float:
        """When it was last said, once it is."""
        end_s = time.monotonic() + timeout_s
        while not self.said or self.said[-1][0] != serving:
            assert time.monotonic() < end_s, f"health does not turn {'SERVING' if serving else 'NOT_SERVING'}"
            await asyncio.sleep(0.005)
        return self.said[-1][1]
