"""The lock on every method: who calls, whether that key opens the method, and how many calls it has under way.

Refuses before a message is read: UNAUTHENTICATED without a key of the file, PERMISSION_DENIED where the key does not
open the method, RESOURCE_EXHAUSTED over the key's limit. Without a key file everything registered is open.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from serving.security.caller import CALLER
from serving.security.keys import Key, Keyring
from serving.security.methods import BY_KIND, OPEN
from serving.security.quota import OverQuota, Quota

_LOG = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
_HEADER = "authorization"

# What grpc hands to and takes from a method: messages of any service.
_Message: TypeAlias = Any
_Context: TypeAlias = grpc.aio.ServicerContext
_Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


class Access(grpc.aio.ServerInterceptor):
    """Stands before every method.

    Args:
      keyring: the keys in force.
      calls_per_key: calls of one name under way; None for no limit of their own.
    """

    def __init__(self, keyring: Keyring, calls_per_key: int | None) -> None:
        self._keyring = keyring
        self._calls = Quota("calls", calls_per_key)
        self._refused, self._logged_s = 0, -_LOG_EVERY_S

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        method = handler_call_details.method
        if method in OPEN:
            return await continuation(handler_call_details)
        key = self._key_of(handler_call_details)
        if key is None:
            self._log(method)
            return _refusal(
                grpc.StatusCode.UNAUTHENTICATED, "authorization: give one of the server's keys, as: Bearer KEY"
            )
        if method not in BY_KIND[key.kind]:
            return _refusal(
                grpc.StatusCode.PERMISSION_DENIED, f"authorization: a key of kind {key.kind} does not open this method"
            )
        # Each call is handled by a task of its own, so this holds for this call.
        CALLER.set(key.name)
        try:
            self._calls.check()
        except OverQuota as error:
            return _refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        handler = await continuation(handler_call_details)
        return None if handler is None else self._counted(handler, key)

    def _key_of(self, details: grpc.HandlerCallDetails) -> Key | None:
        given = [value for name, value in details.invocation_metadata or () if name == _HEADER]
        # Two headers: whoever stands in front may have judged the other one.
        return self._keyring.find(given[0]) if len(given) == 1 and isinstance(given[0], str) else None

    def _log(self, method: str) -> None:
        """Now and then, so that guessing does not fill the disk."""
        self._refused += 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            _LOG.warning("refused %d calls without a valid key, the last of %.128r", self._refused, method)
            self._refused, self._logged_s = 0, now_s

    def _counted(self, handler: grpc.RpcMethodHandler, key: Key) -> grpc.RpcMethodHandler:
        """The handler with its calls counted and its caller known; counting ends however the call ends."""
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        (kind,) = (kind for kind in kinds if getattr(handler, kind) is not None)
        behaviour = getattr(handler, kind)

        async def call(request: _Message, context: _Context) -> _Message:
            async with self._under_way(key, context):
                return await behaviour(request, context)

        async def stream(request: _Message, context: _Context) -> AsyncIterator[_Message]:
            async with self._under_way(key, context), contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        counted: grpc.RpcMethodHandler = make(
            # Not by the kind: a method may also write its stream itself.
            stream if inspect.isasyncgenfunction(behaviour) else call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return counted

    @contextlib.asynccontextmanager
    async def _under_way(self, key: Key, context: _Context) -> AsyncIterator[None]:
        # Once more: others may have come while the message was read.
        try:
            self._calls.enter()
        except OverQuota as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        try:
            yield
        finally:
            self._calls.leave(key.name)


def _refusal(code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
    """A handler that says no. It takes a stream, of which nothing is read before the call ends."""

    async def refuse(requests: object, context: _Context) -> NoReturn:
        await context.abort(code, details)
        raise AssertionError("abort returned")

    return grpc.stream_unary_rpc_method_handler(refuse)
