"""How a call ends other than well: status, one line, and when it may be tried again."""

from __future__ import annotations

from typing import NoReturn

import grpc.aio

from serving.doors.wire import Refusal

REQUEST_ID = "x-request-id"
_PUSHBACK = "grpc-retry-pushback-ms"


async def abort(
    context: grpc.aio.ServicerContext, refusal: Refusal, trailers: tuple[tuple[str, str], ...] = ()
) -> NoReturn:
    """Ends the call; what may be tried again carries `grpc-retry-pushback-ms` behind the given trailers."""
    if refusal.retry_s is not None:
        trailers = (*trailers, (_PUSHBACK, str(round(refusal.retry_s * 1000))))
    await context.abort(refusal.code, refusal.details, trailers)
    raise AssertionError("abort returned")
