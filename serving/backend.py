"""What a front end asks its tokens of: a Runner in this process, or an engine process behind a link."""

from __future__ import annotations

from typing import Protocol

from exegpt_jax.runner.loop import Stats
from exegpt_jax.runner.request import Request
from solver.plan.plan import Plan


class Backend(Protocol):
    """Events of what is submitted come to the front end that was told to it."""

    @property
    def plan(self) -> Plan:
        """In force."""
        ...

    def submit(self, request: Request) -> None:
        """Raises ValueError with one line where it can never run."""
        ...

    def cancel(self, request_id: str) -> None:
        """Frees its row at the next phase boundary; unknown ids are ignored."""
        ...

    def stats(self) -> Stats:
        """A recent snapshot."""
        ...
