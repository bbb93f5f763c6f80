"""Stop strings: where an answer ends, and how much of its text may be shown before that is known.

Text is searched as it grows. The last `longest - 1` characters are held back, since they may turn out to be the
beginning of a stop string that is cut off the answer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one request's text.

    The answer ends with the token whose text completes a stop string; of several, the one that begins first wins, then
    the one given first. The stop string is not part of the text unless `include` is set.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._keep = max(map(len, stops), default=1) - 1
        self._window = ""  # the newest text: at least the last `_keep` characters
        self._shown = 0  # how many characters of the window are out

    def push(self, text: str, *, barred: bool = False) -> tuple[str, str | None]:
        """Adds one token's text; returns what may be shown now, and the stop string that ends the answer, if any.

        While `barred` (fewer than `min_tokens` tokens so far) a stop string that this text completes does not count.
        """
        old = len(self._window)
        self._window += text
        found = None if barred else self._find(old)
        if found is not None:
            begin, stop = found
            end = begin + len(stop) if self._include else begin
            visible = self._window[self._shown : end]
            self._window, self._shown = "", 0
            return visible, stop
        return self._show(len(self._window) if self._include else len(self._window) - self._keep), None

    def flush(self) -> str:
        """The held text, once the answer has ended for another reason."""
        return self._show(len(self._window))

    def _find(self, old: int) -> tuple[int, str] | None:
        """The first stop string that ends behind the first `old` characters of the window."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            begin = self._window.find(stop, max(0, old - len(stop) + 1))
            if begin >= 0 and (best is None or begin < best[0]):
                best = (begin, stop)
        return best

    def _show(self, end: int) -> str:
        visible = self._window[self._shown : end] if end > self._shown else ""
        self._shown = max(self._shown, end)
        surplus = min(self._shown, len(self._window) - self._keep)
        if surplus > 0:
            self._window, self._shown = self._window[surplus:], self._shown - surplus
        return visible
