"""Engine processes that die one after the other: is another one worth a try?"""

from __future__ import annotations

_MOST = 3
_LONG_S = 60.0
"""Who worked for so long did not die of how it was built."""


class Deaths:
    """Counts those in a row that died while they were built, and those that were built and died without a token.

    Times are on time.monotonic's clock."""

    def __init__(self) -> None:
        self._unbuilt = self._untold = 0
        self._built_s: float | None = None

    def built(self, now_s: float) -> None:
        """The process at hand works."""
        self._unbuilt = 0
        self._built_s = now_s

    def told(self) -> None:
        """A token came of it."""
        self._untold = 0

    def died(self, now_s: float) -> str | None:
        """The process at hand; says why no other one would do better, if that is so."""
        built_s, self._built_s = self._built_s, None
        if built_s is None:
            self._unbuilt += 1
            return f"{self._unbuilt} times while it was built" if self._unbuilt >= _MOST else None
        if now_s - built_s > _LONG_S:
            self._untold = 0
        self._untold += 1
        return f"{self._untold} times without a token between" if self._untold >= _MOST else None
