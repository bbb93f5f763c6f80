"""Messages of `vllm.grpc.engine` to plain fields, and what answers have gained to messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from google.protobuf.message import Message
from smg_grpc_proto import vllm_engine_pb2 as pb

from serving.live_request import Update

# Fields that mean what ours of the same name mean, with 0 for "off" where the protocol has no presence.
_SAME = (
    *("top_k", "min_p", "frequency_penalty", "presence_penalty", "min_tokens", "skip_special_tokens", "ignore_eos"),
    "include_stop_str_in_output",
)
_OPTIONAL = ("temperature", "max_tokens", "logprobs", "seed")
# 0 is no value of these: it stands for an absent one, and absent is neutral.
_NEUTRAL_IS_ONE = ("top_p", "repetition_penalty")
_UNSUPPORTED_PARAMETERS = (
    *("prompt_logprobs", "truncate_prompt_tokens", "json_schema", "regex", "grammar", "structural_tag"),
    *("json_object", "choice"),
)
_UNSUPPORTED = ("mm_inputs", "extra_mm_inputs", "media_refs", "kv_transfer_params", "kv_transfer_params_json")


def fields_of(request: pb.GenerateRequest) -> dict[str, object]:
    """The request as `ModelText.prepare` takes it, `n` aside. Raises ValueError naming what this engine cannot do."""
    _refuse(request, _UNSUPPORTED)
    _refuse(request.sampling_params, _UNSUPPORTED_PARAMETERS)
    if request.data_parallel_rank:
        raise ValueError(f"data_parallel_rank: {request.data_parallel_rank}, but there is rank 0 alone; leave it out")
    fields: dict[str, object] = {}
    match request.WhichOneof("input"):
        case "tokenized":
            fields["prompt"] = list(request.tokenized.input_ids)
        case "text":
            fields["prompt"] = request.text
    if request.HasField("sampling_params"):
        fields |= _parameters_of(request.sampling_params)
    return fields


def _parameters_of(parameters: pb.SamplingParams) -> dict[str, object]:
    return {
        **{name: getattr(parameters, name) for name in _SAME},
        **{name: getattr(parameters, name) for name in _OPTIONAL if parameters.HasField(name)},
        **{name: getattr(parameters, name) or 1.0 for name in _NEUTRAL_IS_ONE},
        "stop": list(parameters.stop),
        "stop_token_ids": list(parameters.stop_token_ids),
        "logit_bias": dict(parameters.logit_bias),
    }


def _refuse(message: Message, names: Collection[str]) -> None:
    given = {field.name for field, _ in message.ListFields()}
    for name in names:
        if name in given:
            raise ValueError(f"{name}: is not supported by this engine; leave it out")


def chunk_of(index: int, update: Update) -> pb.GenerateResponse:
    """What an answer has gained."""
    return pb.GenerateResponse(
        chunk=pb.GenerateStreamChunk(
            index=index,
            token_ids=update.token_ids,
            prompt_tokens=update.prompt_tokens,
            completion_tokens=len(update.token_ids),
            output_logprobs=_logprobs_of(update),
        )
    )


def complete_of(index: int, update: Update, unnamed_ids: Collection[int]) -> pb.GenerateResponse:
    """The end of an answer, with the tokens of `update`.

    Args:
      index: of the answer among the request's n.
      update: one with an ending.
      unnamed_ids: stop tokens that are not reported as what stopped it: the model's own ends of sequence.
    """
    assert update.ending is not None
    complete = pb.GenerateComplete(
        index=index,
        output_ids=update.token_ids,
        finish_reason=update.ending.reason,
        prompt_tokens=update.prompt_tokens,
        completion_tokens=update.ending.completion_tokens,
        output_logprobs=_logprobs_of(update),
    )
    match update.ending.stop_reason:
        case str(text):
            complete.matched_stop_str = text
        case int(token) if token not in unnamed_ids:
            complete.matched_token_id = token
    return pb.GenerateResponse(complete=complete)


def aborted(index: int) -> pb.GenerateResponse:
    """The end of an answer that somebody aborted."""
    return pb.GenerateResponse(complete=pb.GenerateComplete(index=index, finish_reason="abort"))


def merged(updates: Sequence[Update]) -> Update:
    """All that an answer has gained, as if it had come at once."""
    return dataclasses.replace(
        updates[-1],
        token_ids=tuple(token for update in updates for token in update.token_ids),
        logprobs=tuple(entry for update in updates for entry in update.logprobs),
    )


def _logprobs_of(update: Update) -> pb.OutputLogProbs | None:
    if not update.logprobs:
        return None
    return pb.OutputLogProbs(
        token_ids=update.token_ids,
        token_logprobs=[entry.logprob for entry in update.logprobs],
        top_logprobs=[
            pb.TopLogProbs(token_ids=[token for token, _ in entry.top], values=[value for _, value in entry.top])
            for entry in update.logprobs
        ],
    )
