"""What a load asks: prompts as they are given, or of given lengths. Every process makes its share by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from serving.client import Parameters, make_request
from serving.client.messages import Prompt
from serving.load.results import LoadRequest


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Given prompts, from the first on again when they have all been asked.

    Attributes:
      entries: of each, "prompt" or "messages", and parameters.
    """

    entries: Sequence[Mapping[str, object]]

    def request(self, number: int, at_s: float) -> LoadRequest:
        return request_of(self.entries[number % len(self.entries)], at_s)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Prompts of random token ids, each with an answer of exactly the wanted length.

    Attributes:
      input_tokens, output_tokens: of each request, from the first on again after the last.
      vocab_size: token ids are below it.
      seed: of the ids; with the request's number it gives the same prompt in whichever process.
      parameters: beside the length.
    """

    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    vocab_size: int
    seed: int
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def request(self, number: int, at_s: float) -> LoadRequest:
        which = number % len(self.input_tokens)
        rng = np.random.default_rng((self.seed, number))
        prompt = rng.integers(self.vocab_size, size=self.input_tokens[which]).tolist()
        length = {"max_tokens": self.output_tokens[which], "ignore_eos": True}
        return LoadRequest(prompt, cast(Parameters, {**self.parameters, **length}), at_s)


Demand = Prompts | Lengths


def request_of(fields: Mapping[str, object], at_s: float = 0.0) -> LoadRequest:
    """A line of `exegpt generate --input` as a request; null counts as absent.

    Raises ValueError with one line that names the field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    prompt, messages = given.pop("prompt", None), given.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise ValueError("prompt: give exactly one of prompt and messages")
    unknown = sorted(given.keys() - Parameters.__annotations__.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}: is no parameter; there are {', '.join(Parameters.__annotations__)}")
    if isinstance(bias := given.get("logit_bias"), Mapping):
        given["logit_bias"] = {int(token): score for token, score in bias.items()}
    return LoadRequest(cast(Prompt, messages if prompt is None else prompt), cast(Parameters, given), at_s)


def check(fields: Mapping[str, object]) -> None:
    """Raises ValueError with one line where no request can be made of it."""
    request = request_of(fields)
    if not isinstance(request.prompt, str | list):
        raise ValueError(f"prompt: is a {type(request.prompt).__name__}; give text, token ids or messages")
    make_request(request.prompt, **request.parameters)
