"""A ModelInferRequest as what it asks of the Frontend and of its answer, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import grpc

from serving.doors import wire
from serving.doors.open_inference.models import RETURNED, Model, Models, Tensor, UnknownModel
from serving.doors.open_inference.tensors import read_inputs, text_of
from serving.doors.vllm_engine.choices import MAX_CHOICES
from serving.proto.inference import inference_pb2 as pb

_EMPTY_FINAL = "triton_enable_empty_final_response"
_US = 1e6
# Triton's levels begin at 1, the first; who names none is on this one. Levels below go before, the others behind.
_DEFAULT_LEVEL = 100

REFUSED = (*wire.REFUSED, UnknownModel)
"""What ends a request other than well."""


def refusal_of(request_id: str, error: Exception) -> wire.Refusal:
    """The status of an error of `REFUSED`."""
    if isinstance(error, UnknownModel):
        return wire.Refusal(grpc.StatusCode.NOT_FOUND, str(error), "UNKNOWN_MODEL")
    return wire.refusal_of(request_id, error)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request, checked as far as this protocol goes.

    Attributes:
      fields: prompt and parameters, as `ModelText.prepare` takes them.
      count: answers.
      outputs: those that each response has.
      stream: answer as it comes, else whole.
      prefix: text in front of the answer's.
      empty_final: the end comes as a response of its own, without outputs.
      timeout_s: until the answer must have ended, if that was said.
    """

    model: Model
    id: str
    fields: Mapping[str, object]
    count: int
    outputs: tuple[Tensor, ...]
    stream: bool
    prefix: str
    empty_final: bool
    timeout_s: float | None


def asked_of(models: Models, request: pb.ModelInferRequest) -> Asked:
    """Raises ValueError or UnknownModel with one line."""
    model = models.find(request.model_name, request.model_version)
    # Clients that do not care leave it empty.
    if request.id:
        wire.check_id(request.id)
    inputs = read_inputs(model, request)
    parameters = {name: _value(name, given) for name, given in request.parameters.items()}
    empty_final = parameters.pop(_EMPTY_FINAL, False)
    timeout_s = _timeout(parameters.pop("timeout", 0))
    if "priority" in parameters:
        parameters["priority"] = _priority(parameters["priority"])
    fields = _sampling(inputs, parameters)
    if model.max_tokens in inputs:
        if "max_tokens" in fields:
            raise ValueError(f"max_tokens: is given twice, as a parameter and as {model.max_tokens}")
        (fields["max_tokens"],) = inputs[model.max_tokens]
    stream, prefix = _is_true(inputs, "stream"), ""
    if model == models.text:
        prompt = fields["prompt"] = text_of(model.prompt, inputs)
        prefix = "" if _excludes_input(inputs, stream) else prompt
    else:
        fields["prompt"] = inputs[model.prompt]
    count = _count(fields.pop("n", 1))
    if count > 1 and model == models.tokens:
        raise ValueError(f"n: {count} answers differ in length, which no tensor holds; ask {models.text.name} for text")
    return Asked(
        model=model,
        id=request.id,
        fields=fields,
        count=count,
        outputs=_outputs(model, request, inputs),
        stream=stream,
        prefix=prefix,
        empty_final=empty_final is True,
        timeout_s=timeout_s,
    )


def _count(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MAX_CHOICES:
        raise ValueError(f"n: {str(given)[:60]!r} is not an integer in [1, {MAX_CHOICES}]")
    return given


def _is_true(inputs: Mapping[str, list[object]], name: str) -> bool:
    return inputs.get(name) == [True]


def _excludes_input(inputs: Mapping[str, list[object]], stream: bool) -> bool:
    """The prompt stands in front of whole answers unless that is declined, as the vLLM back end has it."""
    if stream and inputs.get("exclude_input_in_output") == [False]:
        raise ValueError("exclude_input_in_output: cannot be false for a stream; leave it out")
    return stream or _is_true(inputs, "exclude_input_in_output")


def _outputs(model: Model, request: pb.ModelInferRequest, inputs: Mapping[str, list[object]]) -> tuple[Tensor, ...]:
    names = {output.name for output in request.outputs}
    known = {tensor.name for tensor in model.outputs}
    for output in request.outputs:
        if output.name not in known:
            raise ValueError(
                f"{output.name[:60]}: unknown output of {model.name}; known are {', '.join(sorted(known))}"
            )
        if output.parameters:
            raise ValueError(f"{output.name}: has parameters (classes, shared memory), which are not served")
    if not names:
        names = {model.answer, *(name for name, asks in RETURNED.items() if _is_true(inputs, asks))}
    return tuple(tensor for tensor in model.outputs if tensor.name in names)


def _sampling(inputs: Mapping[str, list[object]], parameters: Mapping[str, object]) -> dict[str, object]:
    """Parameters of both places, under names of their own."""
    given: dict[str, object] = {}
    if "sampling_parameters" in inputs:
        read = _json(text_of("sampling_parameters", inputs))
        if not isinstance(read, dict):
            raise ValueError('sampling_parameters: is no JSON object, such as {"temperature": 0.5}')
        given = {name: _lenient(name, value) for name, value in read.items()}
    if twice := given.keys() & parameters.keys():
        raise ValueError(f"{min(twice)[:60]}: is given twice, in sampling_parameters and in the request's parameters")
    given.update(parameters)
    for name in given:
        if name in ("prompt", "messages"):
            raise ValueError(f"{name}: is no parameter; the prompt is an input")
        if name.startswith(("triton_", "sequence_")):
            raise ValueError(f"{name[:60]}: is not served; leave it out")
    return given


def _value(name: str, given: pb.InferParameter) -> object:
    choice = given.WhichOneof("parameter_choice")
    if choice is None:
        raise ValueError(f"{name[:60]}: the parameter has no value")
    return _lenient(name, getattr(given, choice))


def _lenient(name: str, value: object) -> object:
    """Some clients send every value as text; what text alone can be is left so."""
    if name == "stop" or not isinstance(value, str):
        return value
    read = _json(value.lower() if value in ("True", "False") else value)
    return value if read is None else read


def _json(text: str) -> object:
    """None for what is no JSON, or a number of thousands of digits, or thousands of brackets, or half a character."""
    try:
        read: object = json.loads(text)
        if "\\u" in text:
            # JSON can name halves of characters that no text has, and no answer could quote.
            json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return read


def _priority(level: object) -> int:
    """Triton's level as an order around 0, which is nobody's in particular; lower is earlier in both."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < 2**31:
        raise ValueError(
            f"priority: {str(level)[:60]!r} is not a level: 1 goes first, {_DEFAULT_LEVEL} with who gives none, or 0"
        )
    return level - _DEFAULT_LEVEL if level else 0


def _timeout(microseconds: object) -> float | None:
    """Triton counts it in microseconds, and 0 is none."""
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or not 0 <= microseconds < 2**63:
        raise ValueError("timeout: is not a number of microseconds, 0 or more")
    return microseconds / _US or None
