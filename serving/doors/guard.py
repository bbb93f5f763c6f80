"""The outermost wrapper of every method: no exception, path or traceback reaches a client.

`grpc.aio` sends the text of an unhandled exception, and answers bytes that are no message with UNKNOWN. Here the first
becomes an opaque INTERNAL with an id that the log explains, and the second INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

_LOG = logging.getLogger(__name__)

# What grpc hands to and takes from a method: messages of any service.
_Message: TypeAlias = Any
_Context: TypeAlias = grpc.aio.ServicerContext


_Read: TypeAlias = Callable[[AsyncIterator[_Message]], Awaitable[_Message]]


class _Fault(Exception):
    """One line about requests that are none. It stands in their place, and is raised where it is met."""


_LEAVING_S = 1.0
"""How long a call may take to hear that its client has left."""


class Guard(grpc.aio.ServerInterceptor):
    """Wraps each method's handler."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        (kind,) = (kind for kind in kinds if getattr(handler, kind) is not None)
        behaviour = getattr(handler, kind)
        requests, _, responses = kind.partition("_")
        # To gRPC all of them take streams: a call for one message that ends without it is left alone by grpc.aio, and
        # would stay open.
        make = getattr(grpc, f"stream_{responses}_rpc_method_handler")
        read = _only if requests == "unary" else _each
        wrap = _wrap_stream if inspect.isasyncgenfunction(behaviour) else _wrap_call
        wrapped: grpc.RpcMethodHandler = make(
            wrap(behaviour, read, handler_call_details.method),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped


def _lenient(deserializer: Callable[[bytes], _Message] | None) -> Callable[[bytes], _Message]:
    def read(data: bytes) -> _Message:
        try:
            return data if deserializer is None else deserializer(data)
        except DecodeError:
            return _Fault("request: the bytes are no message of this method")

    return read


def _wrap_call(
    behaviour: Callable[[_Message, _Context], Awaitable[_Message]], read: _Read, method: str
) -> Callable[..., object]:
    async def call(requests: AsyncIterator[_Message], context: _Context) -> _Message:
        try:
            return await behaviour(await read(requests), context)
        # Anything a bug may raise; grpc's own ways to end a call pass.
        except Exception as error:
            await _end(error, method, context)

    return call


def _wrap_stream(
    behaviour: Callable[[_Message, _Context], AsyncGenerator[_Message]], read: _Read, method: str
) -> Callable[..., object]:
    async def stream(requests: AsyncIterator[_Message], context: _Context) -> AsyncIterator[_Message]:
        try:
            async with contextlib.aclosing(behaviour(await read(requests), context)) as responses:
                async for response in responses:
                    yield response
        # As above.
        except Exception as error:
            await _end(error, method, context)

    return stream


async def _only(requests: AsyncIterator[_Message]) -> _Message:
    """The one request of a call."""
    async for request in requests:
        return _checked(request)
    raise _Fault("request: none came; send one message")


async def _each(requests: AsyncIterator[_Message]) -> AsyncIterator[_Message]:
    """The requests of a call as a door reads them, maybe in a task of its own: so faults are raised and end the call in
    `_end`, since grpc.aio cannot end it in one task while another one writes."""

    async def checked() -> AsyncIterator[_Message]:
        async for request in requests:
            yield _checked(request)

    return checked()


def _checked(request: _Message) -> _Message:
    if isinstance(request, _Fault):
        raise request
    return request


async def _end(error: Exception, method: str, context: _Context) -> None:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError) or context.cancelled():
        raise error
    if isinstance(error, _Fault):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    # What was to be sent could not be: the client left. gRPC hears it a moment later and takes the error without a word
    # then; where nobody left it logs it.
    if isinstance(error, grpc.aio.InternalError):
        await asyncio.sleep(_LEAVING_S)
        raise error
    # The generated stand-in for a method that a door leaves out.
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not have the method")
    error_id = secrets.token_hex(6)
    _LOG.error("%s failed (error %s)", method, error_id, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error {error_id}; the server's log explains it")
