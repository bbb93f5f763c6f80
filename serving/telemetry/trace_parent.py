"""The span that a call's client is in, as W3C's `traceparent` metadata says it: kept while its method runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import grpc
import grpc.aio

TRACE_PARENT: ContextVar[str] = ContextVar("trace_parent", default="")
_KEY = "traceparent"


class KeepTraceParent(grpc.aio.ServerInterceptor):
    """Reads it before the method runs; the tasks that the method starts see it too."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        given = dict(handler_call_details.invocation_metadata or ()).get(_KEY, "")
        TRACE_PARENT.set(given if isinstance(given, str) else "")
        return await continuation(handler_call_details)
