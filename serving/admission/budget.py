"""What the queue may hold: tokens of work, and bytes of memory. Requests are counted by the Frontend.

Only what waits in the front end counts; what the engine has been handed is held by its rows.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from exegpt_jax.runner.request import Request
from serving.admission.refusals import Reason
from solver.plan.plan import Plan

DEFAULT_BYTES = 256 * 2**20
# Of this Python: a number above 256 and its place in a tuple; measured for a whole request in tests/serving/admission.
_TOKEN_BYTES = 40
_BIAS_BYTES = 120
# Call, answer and bookkeeping.
_REQUEST_BYTES = 16 * 2**10
# A key may have so many times what is free; so one alone gets 4/5, and there is room for whoever comes next.
_SHARE = 4

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class Size:
    """What a request takes of the queue, or several do together.

    Attributes:
      tokens: to encode and, at most, to generate.
      bytes: of memory, estimated.
    """

    tokens: int = 0
    bytes: int = 0

    def plus(self, other: Size) -> Size:
        return Size(self.tokens + other.tokens, self.bytes + other.bytes)

    def minus(self, other: Size) -> Size:
        return Size(self.tokens - other.tokens, self.bytes - other.bytes)


def size_of(request: Request) -> Size:
    tokens = len(request.prompt_ids)
    memory = _REQUEST_BYTES + _TOKEN_BYTES * tokens + _BIAS_BYTES * len(request.sampling.logit_bias)
    return Size(tokens + request.sampling.max_tokens, memory)


@dataclasses.dataclass(frozen=True)
class QueueLimits:
    """The most of each that waits at once.

    Attributes:
      tokens, bytes: None: chosen for the plan, by `resolved`.
    """

    tokens: int | None = None
    bytes: int | None = None

    def resolved(self, plan: Plan, max_requests: int) -> Size:
        """Without a word from the operator: tokens of `max_requests` requests half as long as the longest, and 256 MiB;
        in any case one request of the longest."""
        least = Size(plan.cache_tokens, _REQUEST_BYTES + _TOKEN_BYTES * plan.max_prompt_tokens)
        tokens = max(max_requests * plan.cache_tokens // 2, least.tokens) if self.tokens is None else self.tokens
        memory = max(DEFAULT_BYTES, least.bytes) if self.bytes is None else self.bytes
        return Size(tokens, memory)


UNSAID = QueueLimits()


def check_alone(size: Size, limits: Size) -> None:
    """Raises ValueError for a request that an empty queue could not hold."""
    if size.tokens > limits.tokens:
        raise ValueError(
            f"max_tokens: prompt and answer may come to {size.tokens} tokens, the queue holds {limits.tokens} "
            "(max_queued_tokens); shorten the prompt or ask for fewer"
        )
    if size.bytes > limits.bytes:
        raise ValueError(
            f"prompt: the request takes {size.bytes} bytes, the queue holds {limits.bytes} (max_queued_bytes); "
            "shorten it"
        )


def lacking(size: Size, held: Size, limits: Size) -> tuple[Reason, str] | None:
    """What there is no room for beside what is held, and a line that says so."""
    if held.tokens + size.tokens > limits.tokens:
        return "QUEUE_TOKENS_FULL", f"{held.tokens} tokens are waiting, of at most {limits.tokens}"
    if held.bytes + size.bytes > limits.bytes:
        return "QUEUE_BYTES_FULL", f"{held.bytes} bytes are waiting, of at most {limits.bytes}"
    return None


def within_share(own: _Number, all_of_it: _Number, limit: _Number) -> bool:
    """Whether a key that holds `own` of what all hold may have more.

    Dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6:2, 1998): the bound on each follows
    what is free, so n greedy keys end at 4 / (1 + 4n) each and leave 1 / (1 + 4n) for others, though nothing is set
    aside.
    """
    return own < _SHARE * (limit - all_of_it)
