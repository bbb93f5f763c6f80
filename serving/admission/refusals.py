"""How a request is turned away before it runs. The reason is a word for programs, the message a line for people."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "WARMING_UP",
    "DRAINING",
    "QUEUE_FULL",
    "QUEUE_TOKENS_FULL",
    "QUEUE_BYTES_FULL",
    "QUEUE_SHARE_USED",
    "BOUND_UNREACHABLE",
    "DEADLINE_UNREACHABLE",
    "ABORTED",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
DEADLINE_PASSED = "DEADLINE_PASSED"
QUOTA_EXCEEDED = "QUOTA_EXCEEDED"


class Unavailable(Exception):
    """No room for this request now; the same request may succeed after `retry_s`."""

    def __init__(self, message: str, retry_s: float, reason: Reason) -> None:
        super().__init__(message)
        self.retry_s = retry_s
        self.reason: Reason = reason


class DeadlineUnreachable(Exception):
    """The answer would take `needed_s` from now, and its deadline comes before that."""

    reason: Reason = "DEADLINE_UNREACHABLE"

    def __init__(self, needed_s: float, left_s: float) -> None:
        super().__init__(
            f"the deadline cannot be met: the answer would take about {needed_s:.3g} s, "
            f"{max(left_s, 0.0):.3g} s are left"
        )
        self.needed_s = needed_s


class DeadlinePassed(Exception):
    """The request's deadline passed before its answer ended."""


def draining() -> Unavailable:
    """The server has begun to stop."""
    return Unavailable("the server is stopping", 1.0, "DRAINING")
