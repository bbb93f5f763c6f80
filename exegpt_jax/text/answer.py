"""One answer as it grows: tokens from the Runner in, shown text and the reason for its end out.

Between the Runner's events and every consumer (stream, file, `LLM`). It alone decides what belongs to the answer:
tokens behind a stop string are dropped, a stop token stands in `token_ids` but not in `text`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exegpt_jax.text.parameters import Parameters
from exegpt_jax.text.stops import StopStrings
from exegpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one hand-over added to an answer.

    Attributes:
      text: text that may be shown now.
      token_ids: tokens that belong to the answer.
      stop: the stop string that has just ended it, else None.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: str | None = None


class Answer:
    """Feed tokens with `push` until it reports a stop string or the Runner has finished the request, then `finish`."""

    def __init__(self, parameters: Parameters, tokenizer: Tokenizer | None) -> None:
        self._parameters = parameters
        self._decoder = None
        if tokenizer is not None:
            self._decoder = tokenizer.stream(skip_special_tokens=parameters.skip_special_tokens)
        self._stops = StopStrings(parameters.stop, include=parameters.include_stop)
        self.tokens = 0
        self.stopped_by: str | None = None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Adds tokens; those behind the one that completes a stop string are not part of the answer."""
        shown: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            self.tokens += 1
            text, self.stopped_by = self._push_one(token_id)
            shown.append(text)
            if self.stopped_by is not None:
                return Piece("".join(shown), tuple(token_ids[:count]), self.stopped_by)
        return Piece("".join(shown), tuple(token_ids))

    def finish(self) -> Piece:
        """The held text at the end of an answer that no stop string ended (yet: the tail may complete one)."""
        if self._decoder is None or self.stopped_by is not None:
            return Piece("", ())
        text, self.stopped_by = self._stops.push(self._decoder.flush(), barred=self._barred())
        return Piece(text if self.stopped_by is not None else text + self._stops.flush(), (), self.stopped_by)

    def _push_one(self, token_id: int) -> tuple[str, str | None]:
        hidden = token_id in self._parameters.sampling.stop_ids and not self._parameters.include_stop
        if self._decoder is None or hidden:
            return "", None
        return self._stops.push(self._decoder.push(token_id), barred=self._barred())

    def _barred(self) -> bool:
        """Stop strings count from the first token behind `min_tokens`, as in vLLM."""
        return self.tokens <= self._parameters.sampling.min_tokens
