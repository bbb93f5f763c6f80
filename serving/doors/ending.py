"""How a call ends other than well: status, one line, what programs read of it, and when it may be tried again."""

from __future__ import annotations

from typing import NoReturn

import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.doors.wire import Refusal

REQUEST_ID = "x-request-id"
DOMAIN = "exegpt"
_PUSHBACK = "grpc-retry-pushback-ms"


async def abort(
    context: grpc.aio.ServicerContext, refusal: Refusal, trailers: tuple[tuple[str, str], ...] = ()
) -> NoReturn:
    """Ends the call. Behind the given trailers stand a `google.rpc.Status` with `ErrorInfo`, and where it may be tried
    again `RetryInfo` and `grpc-retry-pushback-ms`."""
    if refusal.retry_s is not None:
        trailers = (*trailers, (_PUSHBACK, str(round(refusal.retry_s * 1000))))
    status = rpc_status.to_status(_status_of(refusal))
    await context.abort(status.code, status.details, (*trailers, *status.trailing_metadata))
    raise AssertionError("abort returned")


def _status_of(refusal: Refusal) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.facts))
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.details)
    status.details.append(_packed(info))
    if refusal.retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(refusal.retry_s * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
