"""What the Runner tells who asked: plain data, one list per hand-over (after an encode part, after a decode part)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from exegpt_jax.engine.api import Logprobs

Reason = Literal["stop", "length", "abort", "deadline", "error"]


@dataclasses.dataclass(frozen=True)
class Times:
    """A request's moments on the Runner's clock; 0 where one never came.

    Attributes:
      arrival_s: it was asked.
      encode_start_s: its encode phase was dispatched.
      first_token_s: its first token was read.
      last_token_s: its last token was read.
    """

    arrival_s: float
    encode_start_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    @property
    def latency_s(self) -> float:
        """From the start of its encode phase to its last token: the paper's latency."""
        return self.last_token_s - self.encode_start_s

    @property
    def latency_with_wait_s(self) -> float:
        return self.last_token_s - self.arrival_s

    @property
    def ttft_s(self) -> float:
        """Time to first token from the start of its encode phase."""
        return self.first_token_s - self.encode_start_s

    @property
    def ttft_with_wait_s(self) -> float:
        """Time to first token from its arrival."""
        return self.first_token_s - self.arrival_s

    def tpot_s(self, tokens: int) -> float:
        """Time per output token behind the first, of `tokens` in all; 0 where there is no second."""
        return (self.last_token_s - self.first_token_s) / (tokens - 1) if tokens > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Tokens:
    """New tokens of one request.

    Attributes:
      id: the request's.
      token_ids: in order; a stop token that ended the row stands last.
      logprobs: [tokens, ...] of these tokens, where the request asked.
      encode_start_s: when the request's encode phase was dispatched, on the Runner's clock.
    """

    id: str
    token_ids: tuple[int, ...]
    logprobs: Logprobs | None = None
    encode_start_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of a request; exactly one comes for each that was submitted.

    Attributes:
      id: the request's.
      reason: why it ended.
      stop_token: the stop token that ended it, else None.
      detail: of an error: what to tell the operator.
      prompt_tokens: of its prompt.
      completion_tokens: generated here and before (resume), the stop token included.
      times: its moments.
    """

    id: str
    reason: Reason
    stop_token: int | None
    detail: str
    prompt_tokens: int
    completion_tokens: int
    times: Times


Event = Tokens | Finished
