"""Inputs that atheris finds by coverage, for what a request goes through before it is admitted.

    PYTHONPATH=.cache/atheris python -m tests.serving.fuzzing.by_coverage MODEL -runs=20000

In one process, without a server: a message of each door becomes fields, and those a checked request, or a refusal of
one line that tells nothing of this machine. Anything else ends the process with a status that is not 0. The first byte
of an input chooses the door, the rest are the message's bytes; mutations are atheris' own and those of
`random_messages`.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import atheris
from google.protobuf.message import DecodeError, Message

with atheris.instrument_imports(include=["serving.doors", "exegpt_jax.text"]):
    from exegpt_jax.text.prompts import ModelText
    from serving.doors import wire
    from serving.doors.open_inference import models, requests
    from serving.proto.exegpt.v1 import generation_pb2

from serving.proto.inference import inference_pb2
from solver.facts.model_config import read_model_spec
from tests.serving.fuzzing.caller import OURS
from tests.serving.fuzzing.random_messages import any_of, damaged, scrambled
from tests.serving.open_inference import ask

NAME = "tiny"
KNOWN = models.Models.named(NAME)
REFUSED = (ValueError, models.UnknownModel)
GROWTH_MIB = 1024

Door = tuple[type[Message], Callable[[Message], Mapping[str, object]], list[Message]]


def generation(request: generation_pb2.GenerateRequest) -> Mapping[str, object]:
    wire.check_id(request.id or "absent")
    wire.timeout_of(request)
    return wire.fields_of(request)


def inference(request: inference_pb2.ModelInferRequest) -> Mapping[str, object]:
    return requests.asked_of(KNOWN, request).fields


def doors() -> tuple[Door, ...]:
    """Of each door: its message, the way to fields, and requests that would be answered."""
    asked = generation_pb2.GenerateRequest
    tensors = inference_pb2.ModelInferRequest
    sampling = {"temperature": 0.5, "stop": ["e"], "logit_bias": {"3": 1.5}}
    return (
        (
            asked,
            generation,
            [
                asked(id="a", text="x", parameters={"max_tokens": 3, "logprobs": 1, "stop": ["e"]}),
                asked(token_ids={"ids": [1, 2]}, parameters={"temperature": 0.5, "logit_bias": {3: 1.5}}, timeout_s=1),
                asked(chat={"messages": [{"role": "user", "content": "x"}]}, parameters={"priority": 2}),
            ],
        ),
        (
            tensors,
            inference,
            [
                ask(NAME, "a", text_input="x", max_tokens=3, stream=False, sampling_parameters=sampling),
                ask(f"{NAME}_tokens", input_ids=[1, 2], request_output_len=3),
            ],
        ),
    )


def main() -> None:
    directory = Path(sys.argv.pop(1))
    spec = read_model_spec(directory)
    text = ModelText.load(directory, vocab_size=spec.vocab_size, max_prompt_tokens=32, cache_tokens=64)
    known = doors()

    def take(data: bytes) -> None:
        kind, fields_of, _ = known[data[0] % len(known)] if data else known[0]
        try:
            message = kind.FromString(data[1:])
        except DecodeError:
            return
        try:
            fields = dict(fields_of(message))
            fields.pop("priority", None)
            text.prepare(fields)
        except REFUSED as error:
            line = requests.refusal_of("fuzzed", error).details
            assert line, "a refusal says why"
            assert "\n" not in line, f"more than a line: {line!r}"
            assert len(line) <= 1000, f"{len(line)} characters: {line[:200]!r}"
            assert not OURS.search(line), f"tells of this machine: {line!r}"

    def mutated(data: bytes, most_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, most_bytes)
        door = rng.randrange(len(known))
        kind, _, examples = known[door]
        message = any_of(rng, examples)
        if data and data[0] % len(known) == door and rng.random() < 0.7:
            with contextlib.suppress(DecodeError):
                message = kind.FromString(data[1:])
        found = scrambled(rng, message).SerializeToString()
        return (bytes([door]) + (damaged(rng, found) if rng.random() < 0.05 else found))[:most_bytes]

    # What libFuzzer holds against its limit is the peak of this process since the fork: the parent's memory counts.
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.argv.insert(1, f"-rss_limit_mb={peak_mib + GROWTH_MIB}")
    atheris.Setup(sys.argv, take, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
