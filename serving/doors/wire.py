"""Messages of `exegpt.v1` to plain fields, updates to messages, and what ended a request to a status."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping

import grpc

from exegpt_jax.text.answer import Ending
from serving.admission.refusals import (
    DEADLINE_PASSED,
    QUOTA_EXCEEDED,
    DeadlinePassed,
    DeadlineUnreachable,
    Unavailable,
)
from serving.live_request import GenerationFailed, Update
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.security.quota import OverQuota

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}

REFUSED = (ValueError, Unavailable, OverQuota, DeadlinePassed, DeadlineUnreachable, GenerationFailed)
"""What a Frontend raises to end a request."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """How a request ended other than well.

    Attributes:
      code, details: its status.
      reason: for programs, more exact than the code.
      retry_s: it may be tried again after so long; None: not as it stands.
      facts: numbers of the line, for programs.
    """

    code: grpc.StatusCode
    details: str
    reason: str
    retry_s: float | None = None
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check_id(request_id: str, field: str = "id") -> None:
    """Raises ValueError with one line that names the field."""
    if not _ID.fullmatch(request_id):
        raise ValueError(f"{field}: is not 1 to 128 letters, digits or ._:-")


def refusal_of(request_id: str, error: Exception) -> Refusal:
    """The status of an error of `REFUSED`."""
    match error:
        case Unavailable():
            return Refusal(grpc.StatusCode.UNAVAILABLE, f"{error}; try again", error.reason, error.retry_s)
        case OverQuota():
            return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), QUOTA_EXCEEDED)
        case DeadlineUnreachable():
            facts = {"needed_s": f"{error.needed_s:.6g}"}
            return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), error.reason, facts=facts)
        case DeadlinePassed():
            line = "the deadline passed before the answer ended"
            return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, line, DEADLINE_PASSED)
        case GenerationFailed():
            _LOG.error("request %s failed: %s", request_id, error)
            line = f"the engine lost request {request_id}; the server's log explains it"
            return Refusal(grpc.StatusCode.INTERNAL, line, "ENGINE_FAILED")
        case _:
            return Refusal(grpc.StatusCode.INVALID_ARGUMENT, _one_line(str(error)), "INVALID_ARGUMENT")


def _one_line(text: str) -> str:
    """Names that a client chose may hold anything, and stand in what it is told."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def timeout_of(request: pb.GenerateRequest) -> float | None:
    """Raises ValueError with one line."""
    if not request.HasField("timeout_s"):
        return None
    if not 0 < request.timeout_s < float("inf"):
        raise ValueError(f"timeout_s: {request.timeout_s} is not a number above 0")
    return float(request.timeout_s)


def fields_of(request: pb.GenerateRequest) -> dict[str, object]:
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


def response_of(request_id: str, update: Update) -> pb.GenerateResponse:
    """What an answer has gained, as a message."""
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
