"""One answer as it grows: tokens from the Runner in, shown text and the reason for its end out.

Between the Runner's events and every consumer (stream, file, `LLM`). It alone decides what belongs to the answer:
tokens behind a stop string are dropped, a stop token stands in `token_ids` but not in `text`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from exegpt_jax.engine.api import Logprobs
from exegpt_jax.text.parameters import Parameters
from exegpt_jax.text.stops import StopStrings
from exegpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Of one token: its own log-probability and the best (token id, log-probability), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an answer ended.

    Attributes:
      reason: a stop token or stop string, or its length.
      stop_reason: the stop token or stop string, where one ended it.
      completion_tokens: tokens of the answer, the stop token included.
    """

    reason: Literal["stop", "length"]
    stop_reason: int | str | None
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one hand-over added to an answer.

    Attributes:
      text: text that may be shown now.
      token_ids: tokens that belong to the answer.
      logprobs: one per token, where the request asked.
      ending: the answer's end, else None.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    ending: Ending | None = None


class Answer:
    """Feed tokens with `push` until it reports an ending or the Runner has finished the request, then `finish`."""

    def __init__(self, parameters: Parameters, tokenizer: Tokenizer | None) -> None:
        self._parameters = parameters
        self._decoder = None
        if tokenizer is not None:
            self._decoder = tokenizer.stream(skip_special_tokens=parameters.skip_special_tokens)
        self._stops = StopStrings(parameters.stop, include=parameters.include_stop) if parameters.stop else None
        self._tokens = 0

    def push(self, token_ids: Sequence[int], logprobs: Logprobs | None = None) -> Piece:
        """Adds tokens; those behind the one that completes a stop string are not part of the answer."""
        shown: list[str] = []
        stop: str | None = None
        count = 0
        for token_id in token_ids:
            count += 1
            self._tokens += 1
            text, stop = self._push_one(token_id)
            shown.append(text)
            if stop is not None:
                break
        return Piece(
            text="".join(shown),
            token_ids=tuple(token_ids[:count]),
            logprobs=self._logprobs(logprobs, count),
            ending=None if stop is None else Ending("stop", stop, self._tokens),
        )

    def finish(self, reason: Literal["stop", "length"], stop_token: int | None) -> Piece:
        """The held text at the end that the Runner reports; that text may still complete a stop string."""
        ending = Ending(reason, stop_token, self._tokens)
        if self._decoder is None:
            return Piece("", ending=ending)
        if self._stops is None:
            return Piece(self._decoder.flush(), ending=ending)
        text, stop = self._stops.push(self._decoder.flush(), barred=self._barred())
        if stop is not None:
            return Piece(text, ending=Ending("stop", stop, self._tokens))
        return Piece(text + self._stops.flush(), ending=ending)

    def _push_one(self, token_id: int) -> tuple[str, str | None]:
        hidden = token_id in self._parameters.sampling.stop_ids and not self._parameters.include_stop
        if self._decoder is None or hidden:
            return "", None
        text = self._decoder.push(token_id)
        return (text, None) if self._stops is None else self._stops.push(text, barred=self._barred())

    def _barred(self) -> bool:
        """Stop strings count from the first token behind `min_tokens`, as in vLLM."""
        return self._tokens <= self._parameters.sampling.min_tokens

    def _logprobs(self, logprobs: Logprobs | None, count: int) -> tuple[TokenLogprobs, ...]:
        """The first `count` rows of arrays [tokens], [tokens, k], cut to what the request asked for."""
        asked = self._parameters.sampling.logprobs
        if logprobs is None or asked is None:
            return ()
        return tuple(
            TokenLogprobs(
                float(logprobs.chosen[row]),
                tuple(zip(logprobs.top_ids[row, :asked].tolist(), logprobs.top[row, :asked].tolist(), strict=True)),
            )
            for row in range(count)
        )
