"""What an answer has gained, as a ModelInferResponse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from exegpt_jax.text.answer import TokenLogprobs
from exegpt_jax.text.tokenizer import Tokenizer
from serving.doors.open_inference.models import VERSION
from serving.doors.open_inference.requests import Asked
from serving.doors.open_inference.tensors import add_output
from serving.frontend import Frontend
from serving.live_request import Update
from serving.proto.inference import inference_pb2 as pb

_NOT_YET = "None"
"""What the vLLM back end calls the finish reason of an answer that goes on."""

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; vLLM's servers put this number in its place."""


def response_of(
    asked: Asked, updates: Sequence[Update], tokenizer: Tokenizer | None, *, final: bool
) -> pb.ModelInferResponse:
    """Every output that was asked for stands in each response, with an element for each answer.

    `final` says that it is the request's last one."""
    response = _bare(asked, final)
    for tensor in asked.outputs:
        match tensor.name:
            case "text_output":
                add_output(response, tensor, [asked.prefix + update.text for update in updates])
            case "output_ids":
                (update,) = updates
                add_output(response, tensor, update.token_ids)
            case "finish_reason":
                reasons = [_NOT_YET if update.ending is None else update.ending.reason for update in updates]
                add_output(response, tensor, reasons)
            case "logprobs":
                add_output(response, tensor, [_logprobs(update, tokenizer) for update in updates])
            case "cumulative_logprob":
                add_output(response, tensor, [_so_far(update) for update in updates])
            case "num_input_tokens":
                add_output(response, tensor, [updates[0].prompt_tokens])
            case "num_output_tokens":
                add_output(response, tensor, [len(update.token_ids) for update in updates])
    return response


def empty_final(asked: Asked) -> pb.ModelInferResponse:
    """The end alone."""
    return _bare(asked, True)


def tokenizer_of(frontend: Frontend) -> Tokenizer | None:
    return None if frontend.opened is None else frontend.opened[0].tokenizer


def _bare(asked: Asked, final: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=asked.model.name, model_version=VERSION, id=asked.id)
    response.parameters["triton_final_response"].bool_param = final
    return response


def _so_far(update: Update) -> float:
    """Where the sampling parameters do not ask for log-probabilities there is no number."""
    return math.nan if update.cumulative_logprob is None else update.cumulative_logprob


def _logprobs(update: Update, tokenizer: Tokenizer | None) -> str:
    """A JSON list of one object a token, in the shape that the vLLM back end gives it; the token itself comes first.

    Where the sampling parameters do not ask for log-probabilities there are none: null."""
    if update.token_ids and not update.logprobs:
        return "null"
    tokens = zip(update.token_ids, update.logprobs, strict=True)
    return json.dumps([_candidates(token_id, entry, tokenizer) for token_id, entry in tokens])


def _candidates(token_id: int, entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, dict[str, object]]:
    ranks = {each: rank for rank, (each, _) in enumerate(entry.top, 1)}
    values = {token_id: entry.logprob, **dict(entry.top)}
    return {
        each: {
            "logprob": max(logprob, _LEAST_LOGPROB),
            # Behind the best that were asked for, it is not known.
            "rank": ranks.get(each),
            "decoded_token": None if tokenizer is None else tokenizer.decode([each], skip_special_tokens=False),
        }
        for each, logprob in values.items()
    }
