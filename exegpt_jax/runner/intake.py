"""Where the threads that ask meet the one that runs phases: what was asked, what was cancelled, and who is there.

Everything that several threads share lies behind one condition here; what the Runner's loop owns alone lies there.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

from exegpt_jax.runner.request import Request
from exegpt_jax.runner.rows import Row


class Intake:
    """Requests from `submit` to their last event.

    Attributes:
      live: requests that have not ended, by id; only the loop takes any out.
      stopping: nothing new is taken, and the loop is to end.
    """

    def __init__(self) -> None:
        self.live: dict[str, Row] = {}
        self.stopping = False
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._arrived: list[Row] = []
        self._cancelled: set[str] = set()
        self._nudged = False

    @property
    def arrived(self) -> int:
        """Requests that the loop has not taken yet."""
        return len(self._arrived)

    # From any thread.

    def submit(self, request: Request, arrival_s: float) -> None:
        """Raises ValueError with one line where it cannot be taken."""
        with self._changed:
            if self.stopping:
                raise ValueError(f"request {request.id}: the runner is stopping")
            if request.id in self.live:
                raise ValueError(f"id: {request.id!r} is already running; choose another")
            row = Row(next(self._numbers), request, arrival_s)
            self.live[request.id] = row
            self._arrived.append(row)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored, since it may have ended just now."""
        with self._changed:
            if request_id in self.live:
                self._cancelled.add(request_id)
                self._changed.notify_all()

    def nudge(self) -> None:
        """Wakes an idle loop."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Waits until every request has its last event; False if the time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.live, timeout_s)

    def rows(self) -> list[Row]:
        with self._changed:
            return list(self.live.values())

    # From the loop.

    def wait(self) -> None:
        """Until there is something to do. Deadlines matter only while something is asked; an idle loop has none."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._cancelled or self._nudged or self.stopping)

    def take(self) -> tuple[list[Row], list[Row]]:
        """What arrived, and what was cancelled, since the last call."""
        with self._changed:
            self._nudged = False
            arrived, self._arrived = self._arrived, []
            cancelled = [self.live[name] for name in self._cancelled]
            self._cancelled.clear()
        return arrived, cancelled

    def forget(self, ended: Iterable[Row]) -> None:
        """These have got their last event."""
        with self._changed:
            for row in ended:
                del self.live[row.request.id]
                self._cancelled.discard(row.request.id)
            self._changed.notify_all()
