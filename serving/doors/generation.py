"""`exegpt.v1.Generation`: one answer a call, or many over one.

Statuses: INVALID_ARGUMENT names the field and its range; UNAVAILABLE (warming up, draining, too many requests) carries
`grpc-retry-pushback-ms`; DEADLINE_EXCEEDED; INTERNAL is opaque. Generate ends with `x-request-id` in its trailers.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator

import grpc.aio

from serving.doors.ending import REQUEST_ID, abort
from serving.doors.session import Session
from serving.doors.wire import REFUSED, check_id, fields_of, refusal_of, response_of, timeout_of
from serving.frontend import Frontend
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Generation"].full_name
SESSION = "x-session"


class GenerationDoor(pb_grpc.GenerationServicer):
    """Answers from a Frontend."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse]:
        request_id = request.id or secrets.token_hex(8)
        try:
            check_id(request_id)
        except ValueError as error:
            await abort(context, refusal_of(request_id, error))
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        try:
            allowed_s = [s for s in (context.time_remaining(), timeout_of(request)) if s is not None]
            deadline_s = time.monotonic() + min(allowed_s) if allowed_s else None
            async with contextlib.aclosing(
                self._frontend.stream(fields_of(request), deadline_s, request_id)
            ) as updates:
                async for update in updates:
                    yield response_of(request_id, update)
        except REFUSED as error:
            await abort(context, refusal_of(request_id, error), ((REQUEST_ID, request_id),))

    async def GenerateStream(
        self, requests: AsyncIterator[pb.GenerateStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateStreamResponse]:
        # Before anything is asked, so that a client can tell an open call from a refused one.
        await context.send_initial_metadata(((SESSION, "open"),))
        remaining_s = context.time_remaining()
        session = Session(self._frontend, None if remaining_s is None else time.monotonic() + remaining_s)
        async with contextlib.aclosing(session.answer(requests)) as responses:
            async for response in responses:
                yield response
        if session.cut_short is not None:
            await abort(context, session.cut_short)
