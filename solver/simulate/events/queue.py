"""Who waits, in order of arrival, and whether there is room for the next."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.facts.workload import Ints
from solver.simulate.events.arrivals import Demand


@dataclasses.dataclass(frozen=True)
class Room:
    """What the cache of one replica holds.

    Attributes:
      rows: most rows at once.
      tokens: most positions at once; inf where rows are allocated whole.
      page: positions that are given out together.
      reuse: who was thrown out finds those of its pages that nobody took meanwhile (prefix caching).
    """

    rows: int
    tokens: float = math.inf
    page: int = 1
    reuse: bool = False


class Queue:
    """Requests in order of arrival; the first `next` of them have been admitted.

    Attributes:
      next: number of the first who has not been admitted.
      deferrals: requests that were wanted and there, but did not fit at least once.
    """

    def __init__(self, demand: Demand, room: Room) -> None:
        self._demand, self._room = demand, room
        self.next = 0
        self.deferrals = 0
        self._deferred_to = 0
        self._oldest = 0

    @property
    def left(self) -> int:
        return len(self._demand) - self.next

    @property
    def next_arrival_s(self) -> float:
        """When the next request is there; -inf at saturation and where nobody is left."""
        if self._demand.arrival_s is None or not self.left:
            return -math.inf
        return float(self._demand.arrival_s[self.next])

    def waiting(self, now_s: float) -> int:
        """Requests that have arrived and wait."""
        if self._demand.arrival_s is None:
            return self.left
        return int(np.searchsorted(self._demand.arrival_s, now_s, side="right")) - self.next

    def ahead(self, count: int) -> Ints:
        """int64 [count]: prompt tokens of the next requests, of whom there are as many."""
        return self._demand.input_tokens[self.next : self.next + count]

    def take(
        self, wanted: int, held: int, used_tokens: float, growth_tokens: int, alone: bool
    ) -> tuple[int, int, bool]:
        """Admits as many of the `wanted` next requests as fit.

        Args:
          wanted: at most as many as wait.
          held: rows taken already.
          used_tokens: positions that those may use before anybody is admitted again.
          growth_tokens: positions that a new row may use beside its prompt until then.
          alone: nobody else is there, so that a request that does not fit never will.

        Returns:
          Number of the first admitted, how many, and whether somebody stood back.

        Raises:
          ValueError: the next request can never fit.
        """
        first, fitting = self.next, min(wanted, self._room.rows - held)
        if fitting > 0 and math.isfinite(self._room.tokens):
            needed = np.cumsum(self._demand.input_tokens[first : first + fitting] + growth_tokens)
            fitting = int(np.searchsorted(needed, self._room.tokens - used_tokens, side="right"))
            if not fitting and alone:
                raise ValueError(
                    f"cache_tokens: {self._room.tokens:.0f} cannot hold a prompt of "
                    f"{self._demand.input_tokens[first]} tokens and {growth_tokens} more; allow more"
                )
        fitting = max(fitting, 0)
        self.next += fitting
        if fitting < wanted:
            begin = max(self.next, self._deferred_to)
            self._deferred_to = max(self._deferred_to, first + wanted)
            self.deferrals += max(0, self._deferred_to - begin)
        return first, fitting, fitting < wanted

    def oldest(self, ends: Ints, iteration: int) -> int:
        """Number of a request before which everybody has ended by `iteration`."""
        while self._oldest < self.next and ends[self._oldest] <= iteration:
            self._oldest += 1
        return self._oldest
