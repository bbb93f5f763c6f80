"""What a client sends and gets, in Python's terms: prompts and parameters, chunks, replies, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, Unpack, cast

import grpc

from serving.proto.exegpt.v1 import generation_pb2 as pb

_Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[_Message]

REQUEST_ID = "x-request-id"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Parameters(TypedDict, total=False):
    """Parameters of a request; `generation.proto` says what they mean and their ranges."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logit_bias: Mapping[int, float]
    logprobs: int
    skip_special_tokens: bool
    include_stop_str_in_output: bool
    n: int
    priority: int


class ServerError(OSError):
    """A call that ended with another status than OK.

    Attributes:
      code: the gRPC status, such as "INVALID_ARGUMENT".
      request_id: the server's id of the request, where it sent one.
    """

    def __init__(self, code: str, message: str, request_id: str | None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.request_id = request_id


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Of one token: its own log-probability and the best (token id, log-probability), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Finish:
    """How an answer ended.

    Attributes:
      reason: "stop" or "length".
      stop_reason: the stop token or stop string, where one ended it.
      prompt_tokens, completion_tokens: usage.
      seed: the seed that was used.
      encode_start_s, first_token_s, last_token_s: on the server's clock, from the request's arrival; the first is None
        where a stop string ended the answer before the engine reported.
    """

    reason: str
    stop_reason: int | str | None
    prompt_tokens: int
    completion_tokens: int
    seed: int
    encode_start_s: float | None
    first_token_s: float
    last_token_s: float


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What one message added; `finish` stands in the last one."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: Finish | None


@dataclasses.dataclass(frozen=True)
class Reply:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: Finish


def make_request(prompt: Prompt, request_id: str = "", **parameters: Unpack[Parameters]) -> pb.GenerateRequest:
    """The message for one prompt. Raises ValueError for a parameter that the protocol does not carry."""
    request = pb.GenerateRequest(id=request_id)
    try:
        if isinstance(stop := parameters.get("stop"), str):
            parameters["stop"] = [stop]
        request.parameters.CopyFrom(pb.Parameters(**parameters))
        if isinstance(prompt, str):
            request.text = prompt
        elif prompt and isinstance(prompt[0], Mapping):
            request.chat.messages.extend(pb.ChatMessage(**message) for message in cast(Sequence[_Message], prompt))
        else:
            request.token_ids.ids.extend(cast(Sequence[int], prompt))
            request.token_ids.SetInParent()
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"request: {error}") from error
    return request


def chunk_of(response: pb.GenerateResponse) -> Chunk:
    """A message in Python's terms."""
    return Chunk(
        text=response.text,
        token_ids=tuple(response.token_ids),
        logprobs=tuple(
            TokenLogprobs(entry.logprob, tuple((best.token_id, best.logprob) for best in entry.top))
            for entry in response.logprobs
        ),
        finish=_finish(response.finish) if response.HasField("finish") else None,
    )


def _finish(finish: pb.Finish) -> Finish:
    which = finish.WhichOneof("stop_reason")
    return Finish(
        reason=pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower(),
        stop_reason=None if which is None else getattr(finish, which),
        prompt_tokens=finish.usage.prompt_tokens,
        completion_tokens=finish.usage.completion_tokens,
        seed=finish.seed,
        encode_start_s=finish.times.encode_start_s if finish.times.HasField("encode_start_s") else None,
        first_token_s=finish.times.first_token_s,
        last_token_s=finish.times.last_token_s,
    )


def reply_of(chunks: Sequence[Chunk]) -> Reply:
    """The chunks of one answer put together. Raises ServerError if the last one is missing."""
    finish = chunks[-1].finish if chunks else None
    if finish is None:
        raise ServerError("DATA_LOSS", "the stream ended without a finish", None)
    return Reply(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        finish=finish,
    )


def error_of(error: pb.RequestError) -> ServerError:
    """The end of one request of a session."""
    return ServerError(_CODES.get(error.code, "UNKNOWN"), error.message or "no details", error.id)


def server_error(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> ServerError:
    """How a call ended, as an exception."""
    request_id = dict(metadata or ()).get(REQUEST_ID)
    return ServerError(code.name, details or "no details", str(request_id) if request_id is not None else None)
