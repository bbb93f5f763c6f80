"""The two models that are served, NAME for text and NAME_tokens for token ids, and their tensors.

Tensors are named as Triton's vLLM and TensorRT-LLM back ends name them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from serving.proto.inference import inference_pb2 as pb

VERSION = "1"
PLATFORM = "exegpt"
TOKENS_SUFFIX = "_tokens"
ANY_LENGTH = -1

_DATA_TYPES = {
    "BOOL": pb.TYPE_BOOL,
    "INT32": pb.TYPE_INT32,
    "UINT32": pb.TYPE_UINT32,
    "FP32": pb.TYPE_FP32,
    "BYTES": pb.TYPE_STRING,
}


class UnknownModel(Exception):
    """No such model, or no such version of it, is served."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of `length` elements; of any number where that is ANY_LENGTH.

    Outputs that have one element for each answer are such."""

    name: str
    datatype: str
    length: int = 1
    optional: bool = True


RETURNED = {
    "finish_reason": "return_finish_reason",
    "logprobs": "return_logprobs",
    "cumulative_logprob": "return_cumulative_logprob",
    "num_input_tokens": "return_num_input_tokens",
    "num_output_tokens": "return_num_output_tokens",
}
"""Outputs that come if asked for, and the inputs that ask."""

_COMMON_INPUTS = (
    Tensor("stream", "BOOL"),
    Tensor("sampling_parameters", "BYTES"),
    *(Tensor(name, "BOOL") for name in RETURNED.values()),
)
_COMMON_OUTPUTS = (
    Tensor("finish_reason", "BYTES", ANY_LENGTH),
    Tensor("logprobs", "BYTES", ANY_LENGTH),
    Tensor("cumulative_logprob", "FP32", ANY_LENGTH),
    Tensor("num_input_tokens", "UINT32"),
    Tensor("num_output_tokens", "UINT32", ANY_LENGTH),
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A name and its tensors.

    The first input is the prompt, the second limits the answer's tokens, and the first output is the answer."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def prompt(self) -> str:
        return self.inputs[0].name

    @property
    def max_tokens(self) -> str:
        return self.inputs[1].name

    @property
    def answer(self) -> str:
        return self.outputs[0].name

    def metadata(self) -> pb.ModelMetadataResponse:
        response = pb.ModelMetadataResponse(name=self.name, versions=[VERSION], platform=PLATFORM)
        for told, tensors in ((response.inputs, self.inputs), (response.outputs, self.outputs)):
            for tensor in tensors:
                told.add(name=tensor.name, datatype=tensor.datatype, shape=[tensor.length])
        return response

    def config(self) -> pb.ModelConfigResponse:
        config = pb.ModelConfig(
            name=self.name,
            platform=PLATFORM,
            backend=PLATFORM,
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
        )
        for tensor in self.inputs:
            config.input.add(
                name=tensor.name,
                data_type=_DATA_TYPES[tensor.datatype],
                dims=[tensor.length],
                optional=tensor.optional,
            )
        for tensor in self.outputs:
            config.output.add(name=tensor.name, data_type=_DATA_TYPES[tensor.datatype], dims=[tensor.length])
        return pb.ModelConfigResponse(config=config)


@dataclasses.dataclass(frozen=True)
class Models:
    """What is served under one name."""

    text: Model
    tokens: Model

    @classmethod
    def named(cls, name: str) -> Models:
        text = Model(
            name,
            (
                Tensor("text_input", "BYTES", optional=False),
                Tensor("max_tokens", "INT32"),
                Tensor("exclude_input_in_output", "BOOL"),
                *_COMMON_INPUTS,
            ),
            (Tensor("text_output", "BYTES", ANY_LENGTH), *_COMMON_OUTPUTS),
        )
        tokens = Model(
            name + TOKENS_SUFFIX,
            (
                Tensor("input_ids", "INT32", ANY_LENGTH, optional=False),
                Tensor("request_output_len", "INT32"),
                *_COMMON_INPUTS,
            ),
            (Tensor("output_ids", "INT32", ANY_LENGTH), *_COMMON_OUTPUTS),
        )
        return cls(text, tokens)

    def __iter__(self) -> Iterator[Model]:
        return iter((self.text, self.tokens))

    def find(self, name: str, version: str) -> Model:
        """Raises UnknownModel with one line."""
        for model in self:
            if model.name == name and version in ("", VERSION):
                return model
        if any(model.name == name for model in self):
            raise UnknownModel(f"model_version: {version[:60]!r} is not served; leave it out or give {VERSION}")
        known = " and ".join(model.name for model in self)
        raise UnknownModel(f"model_name: {name[:60]!r} is not served; served are {known}")
