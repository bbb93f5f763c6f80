"""Files that an operator replaces while the server runs: certificates and keys.

They are looked at when they are needed, not by a task of their own: what changed on disk counts from the next look on.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_LOG = logging.getLogger(__name__)
_Content = TypeVar("_Content")
_Stamp = tuple[tuple[int, int, int], ...]


def warn_of_readers(path: Path) -> None:
    """Logs that a file which holds a secret can be read by every user of the machine."""
    if path.stat().st_mode & stat.S_IROTH:
        _LOG.warning("%s can be read by every user of this machine; chmod o-r takes that away", path)


class WatchedFiles(Generic[_Content]):
    """What `read` makes of some files, read again when one of them has changed; any thread may ask.

    A change that cannot be read (half of a pair, a typing error) is logged once, and what was read before goes on
    counting: a slip of the pen must not lock everybody out, nor let anybody in.

    Args:
      paths: the files.
      read: makes the content of them; raises ValueError or OSError with one line.
      every_s: at most one look in this time.

    Raises:
      ValueError, OSError: of the first `read`.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], _Content], every_s: float = 1.0) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._every_s = every_s
        self._lock = threading.Lock()
        # Before the reading: a change in between is seen at the next look.
        self._stamp = self._look()
        self._content = read()
        self._looked_s = time.monotonic()

    def get(self, *, now: bool = False) -> _Content:
        """The content in force; `now` looks at the files however short ago that was done."""
        with self._lock:
            if now or time.monotonic() - self._looked_s >= self._every_s:
                self._looked_s = time.monotonic()
                self._refresh()
            return self._content

    def _refresh(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        names = ", ".join(map(str, self._paths))
        try:
            self._content = self._read()
        except (ValueError, OSError) as error:
            _LOG.error("%s changed and cannot be used (%s); what was read before stays in force", names, error)
        else:
            _LOG.warning("%s changed and is in force", names)

    def _look(self) -> _Stamp:
        found = []
        for path in self._paths:
            try:
                found_stat = path.stat()
            except OSError:
                found.append((0, 0, 0))  # its reading says what is wrong
            else:
                found.append((found_stat.st_mtime_ns, found_stat.st_size, found_stat.st_ino))
        return tuple(found)
