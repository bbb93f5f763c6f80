"""Requests and events between front end and engine process, as protobuf and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from exegpt_jax.engine.api import Logprobs, Sampling
from exegpt_jax.runner.events import Event, Finished, Reason, Times, Tokens
from exegpt_jax.runner.request import Request
from serving.proto.exegpt.engine.v1 import link_pb2 as pb

_PLAIN = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)


def from_request(request: Request) -> pb.Request:
    """A request for the wire. Its arrival is known by now."""
    sampling = request.sampling
    return pb.Request(
        id=request.id,
        prompt_ids=request.prompt_ids,
        generated_ids=request.generated_ids,
        arrival_s=request.arrival_s,
        deadline_s=request.deadline_s,
        sampling=pb.Sampling(
            **{name: getattr(sampling, name) for name in _PLAIN},
            stop_ids=sampling.stop_ids,
            bias_ids=[token for token, _ in sampling.logit_bias],
            biases=[bias for _, bias in sampling.logit_bias],
            logprobs=sampling.logprobs,
        ),
    )


def to_request(message: pb.Request) -> Request:
    sampling = message.sampling
    return Request(
        id=message.id,
        prompt_ids=tuple(message.prompt_ids),
        sampling=Sampling(
            **{name: getattr(sampling, name) for name in _PLAIN},
            stop_ids=tuple(sampling.stop_ids),
            logit_bias=tuple(zip(sampling.bias_ids, sampling.biases, strict=True)),
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
        ),
        arrival_s=message.arrival_s,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        generated_ids=tuple(message.generated_ids),
    )


def from_events(events: Sequence[Event]) -> pb.Events:
    """One hand-over of the Runner's."""
    message = pb.Events()
    for event in events:
        if isinstance(event, Tokens):
            message.tokens.append(_from_tokens(event))
        else:
            message.finished.append(_from_finished(event))
    return message


def to_events(message: pb.Events) -> list[Event]:
    return [*map(_to_tokens, message.tokens), *map(_to_finished, message.finished)]


def _from_tokens(event: Tokens) -> pb.Tokens:
    message = pb.Tokens(id=event.id, token_ids=event.token_ids, encode_start_s=event.encode_start_s)
    if event.logprobs is not None:
        message.logprobs.extend(event.logprobs.chosen.tolist())
        message.top_ids.extend(event.logprobs.top_ids.ravel().tolist())
        message.top_logprobs.extend(event.logprobs.top.ravel().tolist())
        message.top_count = event.logprobs.top.shape[-1]
    return message


def _to_tokens(message: pb.Tokens) -> Tokens:
    logprobs = None
    if message.top_count:
        shape = (len(message.token_ids), message.top_count)
        logprobs = Logprobs(
            np.array(message.logprobs, np.float32),
            np.array(message.top_ids, np.int32).reshape(shape),
            np.array(message.top_logprobs, np.float32).reshape(shape),
        )
    return Tokens(message.id, tuple(message.token_ids), logprobs, message.encode_start_s)


def _from_finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        id=event.id,
        reason=event.reason,
        stop_token=event.stop_token,
        detail=event.detail,
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        arrival_s=event.times.arrival_s,
        encode_start_s=event.times.encode_start_s,
        first_token_s=event.times.first_token_s,
        last_token_s=event.times.last_token_s,
    )


def _to_finished(message: pb.Finished) -> Finished:
    return Finished(
        id=message.id,
        reason=cast(Reason, message.reason),
        stop_token=message.stop_token if message.HasField("stop_token") else None,
        detail=message.detail,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        times=Times(message.arrival_s, message.encode_start_s, message.first_token_s, message.last_token_s),
    )
