"""Bounded windows: how far the dispatching thread may run ahead of each stage, and when each stage was done.

Every dispatch leaves a `Mark` with an array that is ready when the stage is. Whoever wants to dispatch more than a
stage's window holds blocks on the oldest work under way. Between dispatches, readiness is only asked about.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from exegpt_jax.engine.results import ready


@dataclasses.dataclass(eq=False)
class Mark:
    """One dispatch on one stage.

    Attributes:
      stage: its index in the pipeline.
      dispatched_s: on the windows' clock.
      ready_s: when it was seen to be done; None until then.
    """

    stage: int
    dispatched_s: float
    ready_s: float | None = None


class Windows:
    """What is under way on the stages of one pipeline. Used by the dispatching thread alone.

    Args:
      stages: how many.
      most: dispatches under way on a stage.
      clock: seconds.
    """

    def __init__(self, stages: int, most: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = most, clock
        self._waiting: tuple[collections.deque[tuple[Array, Mark]], ...] = tuple(
            collections.deque() for _ in range(stages)
        )
        self._oldest: collections.deque[tuple[Array, Mark]] = collections.deque()

    def add(self, stage: int, dispatched_s: float, result: Array) -> Mark:
        """Work that was dispatched; `result` must not be donated before it is ready."""
        mark = Mark(stage, dispatched_s)
        self._waiting[stage].append((result, mark))
        self._oldest.append((result, mark))
        return mark

    def has_room(self) -> bool:
        """Whether every stage may be given more now."""
        self.look()
        return all(len(waiting) < self._most for waiting in self._waiting)

    def make_room(self) -> None:
        """Blocks until every stage may be given more."""
        while not self.has_room():
            self.wait()

    def wait(self) -> None:
        """Blocks until the oldest work under way is done, if there is any."""
        self.look()
        if self._oldest:
            jax.block_until_ready(self._oldest[0][0])
            self.look()

    def wait_for(self, mark: Mark) -> None:
        """Blocks until that work is done."""
        while mark.ready_s is None:
            self.wait()

    def drain(self) -> None:
        """Blocks until nothing is under way."""
        while any(self._waiting):
            self.wait()

    def look(self) -> None:
        """Notes whatever is done by now; a stage works in the order in which it was given work."""
        for waiting in self._waiting:
            while waiting and ready(waiting[0][0]):
                waiting.popleft()[1].ready_s = self._clock()
        while self._oldest and self._oldest[0][1].ready_s is not None:
            self._oldest.popleft()
