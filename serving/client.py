"""A typed client of `exegpt.v1.Generation`: `Client` for threads, `AsyncClient` for asyncio.

    with Client("127.0.0.1:50051") as client:
        for chunk in client.stream("4217 ->", max_tokens=32):
            print(chunk.text, end="")

A prompt is text, a list of token ids, or a list of {"role", "content"}; parameters have vLLM's names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TypedDict, Unpack

import grpc
import grpc.aio

from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]

REQUEST_ID = "x-request-id"
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


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
            request.chat.messages.extend(pb.ChatMessage(**message) for message in prompt)  # type: ignore[arg-type]
        else:
            request.token_ids.ids.extend(prompt)  # type: ignore[arg-type]
            request.token_ids.SetInParent()
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"request: {error}") from error
    return request


class Client:
    """Blocking calls over one channel; safe to share between threads."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = pb_grpc.GenerationStub(self._channel)

    def stream(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Iterator[Chunk]:
        """Chunks as they come; leaving the loop early cancels the request. Raises ServerError, ValueError."""
        call = self._stub.Generate(make_request(prompt, request_id, **parameters), timeout=timeout_s)
        try:
            for response in call:
                yield _chunk(response)
        except grpc.RpcError as error:
            raise _server_error(call.code(), call.details(), call.trailing_metadata()) from error
        finally:
            call.cancel()

    def generate(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Reply:
        """The whole answer. Raises ServerError, ValueError."""
        return _reply(list(self.stream(prompt, request_id=request_id, timeout_s=timeout_s, **parameters)))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; make it inside a running loop."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = pb_grpc.GenerationStub(self._channel)

    async def stream(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> AsyncIterator[Chunk]:
        """Chunks as they come; closing the iterator early cancels the request. Raises ServerError, ValueError."""
        call = self._stub.Generate(make_request(prompt, request_id, **parameters), timeout=timeout_s)
        try:
            async for response in call:
                yield _chunk(response)
        except grpc.aio.AioRpcError as error:
            raise _server_error(error.code(), error.details(), error.trailing_metadata()) from error
        finally:
            call.cancel()

    async def generate(
        self, prompt: Prompt, *, request_id: str = "", timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Reply:
        """The whole answer. Raises ServerError, ValueError."""
        pieces = self.stream(prompt, request_id=request_id, timeout_s=timeout_s, **parameters)
        return _reply([chunk async for chunk in pieces])

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _chunk(response: pb.GenerateResponse) -> Chunk:
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


def _reply(chunks: Sequence[Chunk]) -> Reply:
    finish = chunks[-1].finish if chunks else None
    if finish is None:
        raise ServerError("DATA_LOSS", "the stream ended without a finish", None)
    return Reply(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        finish=finish,
    )


def _server_error(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> ServerError:
    request_id = dict(metadata or ()).get(REQUEST_ID)
    return ServerError(code.name, details or "no details", str(request_id) if request_id is not None else None)
