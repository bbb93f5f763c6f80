"""Many requests over one call: what is asked together travels together, and so do the tokens of one phase.

async with AsyncClient("127.0.0.1:50051") as client, client.session() as session:
    replies = await asyncio.gather(*(session.generate(prompt) for prompt in prompts))
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Unpack

import grpc
import grpc.aio

from serving.client.messages import (
    Chunk,
    Parameters,
    Prompt,
    Reply,
    ServerError,
    chunk_of,
    error_of,
    make_request,
    reply_of,
    server_error,
)
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc

# What grpc.aio says where the call ended while a message was being written.
_STATUS_LOST = "Internal error from Core"


def _ended_by_server() -> ServerError:
    return ServerError("UNAVAILABLE", "the server ended the session", None)


class _Answer:
    """What has come of one answer and nobody has taken yet."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.error: ServerError | None = None
        self.ready = asyncio.Event()


class AsyncSession:
    """One call of GenerateStream. A context manager, made by `AsyncClient.session`; leaving it cancels what is left."""

    def __init__(self, stub: pb_grpc.GenerationStub, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata
        self._numbers = itertools.count()
        self._answers: dict[str, _Answer] = {}
        self._asked = pb.GenerateStreamRequest()
        self._news = asyncio.Event()
        self._ended: ServerError | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def ended(self) -> ServerError | None:
        """Why nothing more can be asked, once that is so."""
        return self._ended

    async def stream(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> AsyncIterator[Chunk]:
        """As `AsyncClient.stream`. Raises ValueError too where a request with that id is under way."""
        name = request_id or f"request-{next(self._numbers)}"
        if name in self._answers:
            raise ValueError(f"request_id: {name!r} is under way; choose another")
        request = make_request(prompt, name, **parameters)
        if timeout_s is not None:
            request.timeout_s = timeout_s
        if self._ended is not None:
            raise self._ended
        answer = self._answers[name] = _Answer()
        self._asked.requests.append(request)
        self._news.set()
        done = False
        try:
            while not done:
                await answer.ready.wait()
                answer.ready.clear()
                chunks, answer.chunks = answer.chunks, []
                for chunk in chunks:
                    done = chunk.finish is not None
                    yield chunk
                if answer.error is not None:
                    done = True
                    raise answer.error
        finally:
            del self._answers[name]
            if not done:
                self._asked.cancel_ids.append(name)
                self._news.set()

    async def generate(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Reply:
        """The whole answer. Raises ServerError, ValueError."""
        pieces = self.stream(prompt, request_id=request_id, timeout_s=timeout_s, **parameters)
        return reply_of([chunk async for chunk in pieces])

    async def __aenter__(self) -> AsyncSession:
        call = self._stub.GenerateStream(metadata=self._metadata)
        self._tasks = (asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end(ServerError("CANCELLED", "the session was closed", None))

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        # Why a write fails is what the reader hears.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # A refused call has none. Writing to it could hide why: grpc.aio then forgets the status that had come.
            if not await call.initial_metadata():
                return
            while True:
                await self._news.wait()
                self._news.clear()
                message, self._asked = self._asked, pb.GenerateStreamRequest()
                await call.write(message)

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        try:
            async for message in call:
                self._take(message)
            self._end(_ended_by_server())
        except grpc.aio.AioRpcError as error:
            if error.details() == _STATUS_LOST:
                self._end(_ended_by_server())
            else:
                self._end(server_error(error.code(), error.details(), error.trailing_metadata()))
        finally:
            call.cancel()

    def _take(self, message: pb.GenerateStreamResponse) -> None:
        for response in message.responses:
            # It may have been left just now.
            if (answer := self._answers.get(response.id)) is not None:
                answer.chunks.append(chunk_of(response))
                answer.ready.set()
        for error in message.errors:
            if (answer := self._answers.get(error.id)) is not None:
                answer.error = error_of(error)
                answer.ready.set()

    def _end(self, error: ServerError) -> None:
        """Nothing more will come."""
        self._ended = self._ended or error
        for answer in self._answers.values():
            answer.error = answer.error or self._ended
            answer.ready.set()
