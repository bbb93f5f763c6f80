"""What the front end counts of requests, as it goes: a few additions a hand-over, read by whoever scrapes."""

from __future__ import annotations

import collections
import dataclasses
from typing import Literal

from serving.admission.refusals import QUOTA_EXCEEDED, REASONS
from serving.telemetry.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S, TOKENS, Histogram

Outcome = Literal["stop", "length", "abort", "deadline", "error", "refused", "invalid"]
OUTCOMES: tuple[Outcome, ...] = ("stop", "length", "abort", "deadline", "error", "refused", "invalid")
ANSWERED: tuple[Outcome, ...] = ("stop", "length")

# What a client did wrong is one reason; a series appears with its first value otherwise, which hides a rate.
REFUSALS: tuple[str, ...] = (*REASONS, QUOTA_EXCEEDED, "INVALID_ARGUMENT")


@dataclasses.dataclass(frozen=True)
class Ended:
    """A request that nobody waits for any more. Moments are on time.monotonic's clock, 0 where one never came.

    Attributes:
      request_id: the client's name for it, or the one that it was given.
      outcome: how it ended.
      prompt_tokens, completion_tokens: of the prompt, and handed over.
      arrival_s, encode_start_s, first_token_s, last_token_s: it came, its encode phase began, tokens were handed over.
      ended_s: its client had the last of it, or left.
      detail: of an error.
      trace_parent: the span that its client is in, as W3C's `traceparent` has it; empty without one.
      predicted_start_s, predicted_end_s: what was predicted, when it came, of the start of its encode phase and of its
        last token.
    """

    request_id: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    arrival_s: float
    encode_start_s: float
    first_token_s: float
    last_token_s: float
    ended_s: float
    detail: str = ""
    trace_parent: str = ""
    predicted_start_s: float = 0.0
    predicted_end_s: float = 0.0

    @property
    def answered(self) -> bool:
        return self.outcome in ANSWERED


@dataclasses.dataclass(frozen=True)
class LatencyBound:
    """What a request's latency is held against, from the start of its encode phase or from its arrival."""

    latency_s: float
    clock: Literal["encode", "arrival"]

    def missed_by(self, request: Ended) -> bool:
        begin_s = request.arrival_s if self.clock == "arrival" else request.encode_start_s
        return begin_s > 0 and request.last_token_s - begin_s > self.latency_s


class Tally:
    """Counts since the start.

    Attributes:
      bound: of the plan in force; None while there is none.
      bound_misses: answers that took longer.
      outcomes: requests by how they ended.
      refusals: requests that were not let in, by reason.
      prompt_tokens, generated_tokens: encoded, and handed over.
      first_token_s: from arrival.
      between_tokens_s: the time between two hand-overs to a request over the tokens of the second, once a token.
      per_token_s: of an answer, (last - first) / (tokens - 1), once a request.
      queue_s: from arrival to the start of the encode phase.
      predicted_queue_s, predicted_request_s: of answered requests, what was predicted for `queue_s` and `request_s`.
      encode_s, decode_s: from there to the first token, and from that to the last.
      request_s: from arrival to the last token.
      asked_tokens, answered_tokens: of each answered request.
    """

    def __init__(self) -> None:
        self.bound: LatencyBound | None = None
        self.bound_misses = 0
        self.outcomes: collections.Counter[Outcome] = collections.Counter(dict.fromkeys(OUTCOMES, 0))
        self.refusals: collections.Counter[str] = collections.Counter(dict.fromkeys(REFUSALS, 0))
        self.prompt_tokens = self.generated_tokens = 0
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(BETWEEN_TOKENS_S)
        self.per_token_s = Histogram(BETWEEN_TOKENS_S)
        self.queue_s, self.encode_s, self.decode_s = Histogram(REQUEST_S), Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.request_s = Histogram(REQUEST_S)
        self.predicted_queue_s, self.predicted_request_s = Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.asked_tokens, self.answered_tokens = Histogram(TOKENS), Histogram(TOKENS)

    def began(self, prompt_tokens: int, waited_s: float) -> None:
        """A request's first tokens were handed over."""
        self.prompt_tokens += prompt_tokens
        self.first_token_s.observe(waited_s)

    def grew(self, tokens: int, gap_s: float | None) -> None:
        """A request got tokens, `gap_s` after those before; None: they are its first."""
        self.generated_tokens += tokens
        if gap_s is not None and tokens:
            self.between_tokens_s.observe(gap_s / tokens, tokens)

    def refused(self, outcome: Literal["refused", "invalid"], reason: str) -> None:
        self.outcomes[outcome] += 1
        self.refusals[reason] += 1

    def ended(self, request: Ended) -> None:
        self.outcomes[request.outcome] += 1
        if request.encode_start_s:
            self.queue_s.observe(request.encode_start_s - request.arrival_s)
        if not request.answered:
            return
        if self.bound is not None and self.bound.missed_by(request):
            self.bound_misses += 1
        self.request_s.observe(request.last_token_s - request.arrival_s)
        if request.predicted_end_s:
            self.predicted_queue_s.observe(request.predicted_start_s - request.arrival_s)
            self.predicted_request_s.observe(request.predicted_end_s - request.arrival_s)
        if request.encode_start_s:
            self.encode_s.observe(request.first_token_s - request.encode_start_s)
        self.decode_s.observe(request.last_token_s - request.first_token_s)
        if request.completion_tokens > 1:
            self.per_token_s.observe((request.last_token_s - request.first_token_s) / (request.completion_tokens - 1))
        self.asked_tokens.observe(request.prompt_tokens)
        self.answered_tokens.observe(request.completion_tokens)
