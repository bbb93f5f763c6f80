"""`exegpt.v1.Generation` on the wire: messages to plain fields, updates to messages, refusals to statuses.

Statuses: INVALID_ARGUMENT names the field and its range; UNAVAILABLE (warming up, draining, too many requests) carries
`grpc-retry-pushback-ms`; DEADLINE_EXCEEDED; INTERNAL is opaque. Every call ends with `x-request-id` in its trailers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator
from typing import NoReturn

import grpc
import grpc.aio

from exegpt_jax.text.answer import Ending
from serving.frontend import DeadlinePassed, Frontend, GenerationFailed, Unavailable, Update
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Generation"].full_name
REQUEST_ID = "x-request-id"

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class GenerationDoor(pb_grpc.GenerationServicer):
    """Answers Generate from a Frontend."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse]:
        request_id = request.id or secrets.token_hex(8)
        if not _ID.fullmatch(request_id):
            line = "id: is not 1 to 128 letters, digits or ._:-"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, line)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        remaining_s = context.time_remaining()
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        try:
            async with contextlib.aclosing(self._frontend.stream(_fields(request), deadline_s)) as updates:
                async for update in updates:
                    yield _response(request_id, update)
        except (ValueError, Unavailable, DeadlinePassed, GenerationFailed) as error:
            await _refuse(context, request_id, error)


def _fields(request: pb.GenerateRequest) -> dict[str, object]:
    """The request as `ModelText.prepare` takes it: only fields that are present."""
    fields: dict[str, object] = {}
    for field, value in request.parameters.ListFields():
        if field.name == "logit_bias":
            fields[field.name] = dict(value)
        else:
            fields[field.name] = list(value) if field.name in ("stop", "stop_token_ids") else value
    match request.WhichOneof("prompt"):
        case "text":
            fields["prompt"] = request.text
        case "token_ids":
            fields["prompt"] = list(request.token_ids.ids)
        case "chat":
            fields["messages"] = [{"role": m.role, "content": m.content} for m in request.chat.messages]
    return fields


def _response(request_id: str, update: Update) -> pb.GenerateResponse:
    response = pb.GenerateResponse(id=request_id, text=update.text, token_ids=update.token_ids)
    for entry in update.logprobs:
        top = [pb.TokenLogprob(token_id=token, logprob=logprob) for token, logprob in entry.top]
        response.logprobs.add(logprob=entry.logprob, top=top)
    if update.ending is not None:
        response.finish.CopyFrom(_finish(update, update.ending))
    return response


def _finish(update: Update, ending: Ending) -> pb.Finish:
    finish = pb.Finish(
        reason=_REASONS[ending.reason],
        usage=pb.Usage(
            prompt_tokens=update.prompt_tokens,
            completion_tokens=ending.completion_tokens,
            total_tokens=update.prompt_tokens + ending.completion_tokens,
        ),
        seed=update.seed,
        times=pb.Times(
            encode_start_s=update.encode_start_s,
            first_token_s=update.first_token_s,
            last_token_s=update.last_token_s,
        ),
    )
    if isinstance(ending.stop_reason, str):
        finish.stop_string = ending.stop_reason
    elif ending.stop_reason is not None:
        finish.stop_token_id = ending.stop_reason
    return finish


async def _refuse(context: grpc.aio.ServicerContext, request_id: str, error: Exception) -> NoReturn:
    trailers: tuple[tuple[str, str], ...] = ((REQUEST_ID, request_id),)
    match error:
        case Unavailable():
            code, details = grpc.StatusCode.UNAVAILABLE, f"{error}; try again"
            trailers = (*trailers, ("grpc-retry-pushback-ms", str(round(error.retry_s * 1000))))
        case DeadlinePassed():
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer ended"
        case GenerationFailed():
            _LOG.error("request %s failed: %s", request_id, error)
            code, details = (
                grpc.StatusCode.INTERNAL,
                f"the engine lost request {request_id}; the server's log explains it",
            )
        case _:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    await context.abort(code, details, trailers)
    raise AssertionError("abort returned")
