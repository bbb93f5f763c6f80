"""Captures of what devices do (`jax.profiler`), one at a time, into a directory that the server was started with.

No caller names a path. A capture that nobody stops ends by itself, so that it cannot fill the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

_LOG = logging.getLogger(__name__)
MOST_S = 60.0


class Capture:
    """At most one capture under way. Safe to use from several threads.

    Args:
      directory: gets a folder for each capture.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._under_way: str | None = None
        self._timer: threading.Timer | None = None

    def start(self, most_s: float | None = None) -> str:
        """Begins one and returns the name of its folder.

        Args:
          most_s: after which it ends by itself; None: after a minute.

        Raises:
          ValueError: one is under way, or `most_s` is out of range.
        """
        limit_s = MOST_S if most_s is None else most_s
        if not 0 < limit_s <= MOST_S:
            raise ValueError(f"most_s: {most_s} is not in (0, {MOST_S:g}]")
        # Only here, since a fake engine needs none.
        import jax

        with self._lock:
            if self._under_way is not None:
                raise ValueError(f"profile: {self._under_way} is under way; stop it first")
            name = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f"-{time.monotonic_ns() % 1_000_000:06d}"
            jax.profiler.start_trace(str(self._directory / name))
            self._under_way = name
            self._timer = threading.Timer(limit_s, self._stop_late, (name,))
            self._timer.daemon = True
            self._timer.start()
        return name

    def stop(self) -> str:
        """Ends it, writes it, and returns the name of its folder. Raises ValueError if none is under way."""
        import jax

        with self._lock:
            if self._under_way is None:
                raise ValueError("profile: none is under way; start one first")
            name, self._under_way = self._under_way, None
            if self._timer is not None:
                self._timer.cancel()
            jax.profiler.stop_trace()
        return name

    def _stop_late(self, name: str) -> None:
        with self._lock:
            late = self._under_way == name
        if late:
            try:
                self.stop()
            # Stopped in the same moment.
            except ValueError:
                return
            _LOG.warning("the capture %s ended by itself", name)
