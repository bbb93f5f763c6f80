"""`Client` for threads and `AsyncClient` for asyncio: one gRPC call per request, over one channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Unpack

import grpc
import grpc.aio

from serving.client.channel import Tls, metadata_of, options_of
from serving.client.messages import Chunk, Parameters, Prompt, Reply, chunk_of, make_request, reply_of, server_error
from serving.client.session import AsyncSession
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc


class Client:
    """Blocking calls over one channel; safe to share between threads.

    Args:
      address: host:port.
      key: one of the server's keys, where it has any.
      tls: encrypts, and says whom to trust.
      retries: a call that is refused for now is made again, when the server says; requests of a session are not.
    """

    def __init__(self, address: str, *, key: str | None = None, tls: Tls | None = None, retries: bool = True) -> None:
        self._metadata = metadata_of(key)
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options_of(tls, retries=retries))
        else:
            self._channel = grpc.secure_channel(address, tls.credentials(), options=options_of(tls, retries=retries))
        self._stub = pb_grpc.GenerationStub(self._channel)

    def stream(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Iterator[Chunk]:
        """Chunks as they come; leaving the loop early cancels the request. Raises ServerError, ValueError."""
        request = make_request(prompt, request_id, **parameters)
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            for response in call:
                yield chunk_of(response)
        except grpc.RpcError as error:
            raise server_error(call.code(), call.details(), call.trailing_metadata()) from error
        finally:
            call.cancel()

    def generate(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Reply:
        """The whole answer. Raises ServerError, ValueError."""
        return reply_of(list(self.stream(prompt, request_id=request_id, timeout_s=timeout_s, **parameters)))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; make it inside a running loop."""

    def __init__(self, address: str, *, key: str | None = None, tls: Tls | None = None, retries: bool = True) -> None:
        self._metadata = metadata_of(key)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options_of(tls, retries=retries))
        else:
            self._channel = grpc.aio.secure_channel(
                address, tls.credentials(), options=options_of(tls, retries=retries)
            )
        self._stub = pb_grpc.GenerationStub(self._channel)

    async def reachable(self, timeout_s: float) -> bool:
        """Whether somebody listens there, or does before the time is over."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)
        except TimeoutError:
            return False
        return True

    def session(self) -> AsyncSession:
        """Many requests over one call, for who has many; to be used with `async with`."""
        return AsyncSession(self._stub, self._metadata)

    async def stream(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> AsyncIterator[Chunk]:
        """Chunks as they come; closing the iterator early cancels the request. Raises ServerError, ValueError."""
        request = make_request(prompt, request_id, **parameters)
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                yield chunk_of(response)
        except grpc.aio.AioRpcError as error:
            raise server_error(error.code(), error.details(), error.trailing_metadata()) from error
        finally:
            call.cancel()

    async def generate(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Reply:
        """The whole answer. Raises ServerError, ValueError."""
        pieces = self.stream(prompt, request_id=request_id, timeout_s=timeout_s, **parameters)
        return reply_of([chunk async for chunk in pieces])

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
