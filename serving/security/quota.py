"""How much of something each key has under way, and how much it may have."""

from __future__ import annotations

from collections import Counter

from serving.security.caller import CALLER


class OverQuota(Exception):
    """The caller's key has as much under way as it may have."""


class Quota:
    """Counts by the caller of the moment.

    Args:
      what: is counted, in the plural.
      most: for each key; None counts only.
    """

    def __init__(self, what: str, most: int | None) -> None:
        self._what, self._most = what, most
        self._under_way: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Of the caller of the moment."""
        caller = CALLER.get()
        return 0 if caller is None else self._under_way[caller]

    def check(self) -> None:
        """Raises OverQuota if the caller could not enter now."""
        caller = CALLER.get()
        if self._most is not None and caller is not None and self._under_way[caller] >= self._most:
            raise OverQuota(f"{self._most} {self._what} of this key are under way, which is its limit")

    def enter(self) -> None:
        """Whoever enters leaves, with `leave`. Raises OverQuota."""
        self.check()
        if (caller := CALLER.get()) is not None:
            self._under_way[caller] += 1

    def leave(self, caller: str | None) -> None:
        """`caller` is who entered: the one of the moment may be another task's."""
        if caller is not None:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]
