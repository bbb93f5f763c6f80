"""What others take of a virtual machine while something runs: Linux counts it as stolen time."""

from __future__ import annotations

import os
import pathlib
import time

_STOLEN = 8  # of the fields of the first line of /proc/stat


class Stolen:
    """From its making on.

    A share of 0.02 of all cores' time is what a quiet machine shows; a run under more of it says little.
    """

    TOLERANCE = 0.02

    def __init__(self) -> None:
        self._began_s, self._before_s = time.monotonic(), _stolen_s()

    def share(self) -> float:
        """Of all cores' time."""
        took_s = max(time.monotonic() - self._began_s, 1e-9)
        return (_stolen_s() - self._before_s) / took_s / (os.cpu_count() or 1)


def _stolen_s() -> float:
    """0 where the system does not say."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[_STOLEN]) / os.sysconf("SC_CLK_TCK") if len(fields) > _STOLEN else 0.0
