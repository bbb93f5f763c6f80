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


class _Malformed(Exception):
    """Stands for a request whose bytes are no message, and is raised where it is met."""


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
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behaviour = getattr(handler, kind)
        wrap = _wrap_stream if inspect.isasyncgenfunction(behaviour) else _wrap_call
        wrapped: grpc.RpcMethodHandler = make(
            wrap(behaviour, handler_call_details.method),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped


def _lenient(deserializer: Callable[[bytes], _Message] | None) -> Callable[[bytes], _Message]:
    def read(data: bytes) -> _Message:
        try:
            return data if deserializer is None else deserializer(data)
        except DecodeError:
            return _Malformed()

    return read


def _wrap_call(behaviour: Callable[[_Message, _Context], Awaitable[_Message]], method: str) -> Callable[..., object]:
    async def call(request: _Message, context: _Context) -> _Message:
        try:
            return await behaviour(_checked(request), context)
        # Anything a bug may raise; grpc's own ways to end a call pass.
        except Exception as error:
            await _end(error, method, context)

    return call


def _wrap_stream(
    behaviour: Callable[[_Message, _Context], AsyncGenerator[_Message]], method: str
) -> Callable[..., object]:
    async def stream(request: _Message, context: _Context) -> AsyncIterator[_Message]:
        try:
            async with contextlib.aclosing(behaviour(_checked(request), context)) as responses:
                async for response in responses:
                    yield response
        # As above.
        except Exception as error:
            await _end(error, method, context)

    return stream


def _checked(request: _Message) -> _Message:
    """The request, or for a stream of them an iterator that raises at malformed ones when they come.

    It raises, and the call ends by `_end`, because a door may read in a task of its own: grpc.aio cannot end a call
    from one task while another one writes."""
    if hasattr(request, "__anext__") or hasattr(request, "__aiter__"):
        return _checked_stream(request)
    if isinstance(request, _Malformed):
        raise request
    return request


async def _checked_stream(requests: AsyncIterator[_Message]) -> AsyncIterator[_Message]:
    async for request in requests:
        yield _checked(request)


async def _end(error: Exception, method: str, context: _Context) -> None:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError) or context.cancelled():
        raise error
    if isinstance(error, _Malformed):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: the bytes are no message of this method")
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
