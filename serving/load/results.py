"""What a load asks, and what became of each request."""

from __future__ import annotations

import dataclasses
import math

from serving.client import Parameters, Prompt


@dataclasses.dataclass(frozen=True)
class LoadRequest:
    """One request of a load.

    Attributes:
      prompt: text, token ids or messages.
      parameters: under the protocol's names.
      at_s: when to send it, from the load's start; closed loops ignore it.
    """

    prompt: Prompt
    parameters: Parameters = dataclasses.field(default_factory=lambda: Parameters())
    at_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class LoadResult:
    """What became of one request; times in seconds from the load's start.

    Attributes:
      index: its place in the load.
      planned_s: when it should have been sent (closed loop: was sent); latencies count from here.
      sent_s, first_token_s, last_token_s: on the client's clock; NaN for what did not happen.
      text, token_ids, finish_reason: the answer, as far as it came.
      error: None, or "CODE: details".
      encode_to_last_s: the server's word for the time from the start of the encode phase to the last token.
      encode_to_first_s: the same to the first token.
      prompt_tokens: as the server counts them; 0 where it did not say.
      message_s, message_tokens: when each message that brought tokens came, and how many it brought.
    """

    index: int
    planned_s: float
    sent_s: float
    first_token_s: float
    last_token_s: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    error: str | None
    encode_to_last_s: float
    encode_to_first_s: float = math.nan
    prompt_tokens: int = 0
    message_s: tuple[float, ...] = ()
    message_tokens: tuple[int, ...] = ()

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_token_s - self.planned_s

    @property
    def latency_with_wait_s(self) -> float:
        return self.last_token_s - self.planned_s
