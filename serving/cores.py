"""Which cores compute: all but one, which is left to who asks.

Both processes of the demo share one machine. Were the wire's work to run on the engine's cores, phases would take half
as long again as they do by themselves, now more, now less, and nothing could be planned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Cores:
    """Core numbers; both empty where there is one core only, or the system pins nothing.

    Attributes:
      engine: for programs and the Runner.
      wire: for the client, and for the server's side of the wire.
    """

    engine: frozenset[int]
    wire: frozenset[int]

    @property
    def both(self) -> frozenset[int]:
        """For what happens before anybody asks, such as compiling."""
        return self.engine | self.wire


def split_cores() -> Cores:
    """Of those that this thread may use now."""
    mine = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
    if len(mine) < 2:
        return Cores(frozenset(), frozenset())
    return Cores(mine - {max(mine)}, frozenset({max(mine)}))


def keep_to(cores: frozenset[int]) -> None:
    """This thread, and threads that it starts from now on."""
    if cores:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def kept_to(cores: frozenset[int]) -> Iterator[None]:
    """This thread for as long as the block runs; threads that it starts stay."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    keep_to(cores)
    try:
        yield
    finally:
        keep_to(frozenset(before))
