"""What an operator sees on standard error: lines, and progress bars where it is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_S = 5.0
"""Between two lines of something that is under way, where there is no terminal."""


class Display:
    """Bars and lines that do not disturb each other; without a terminal, lines only.

    Args:
      on_line: gets the lines instead, and no bar is shown.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._on_line = on_line
        self._progress: Progress | None = None
        if on_line is None and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        if self._on_line is not None:
            self._on_line(line)
        elif self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[None]:
        """A bar that moves for as long as the block runs."""
        if self._progress is None:
            yield
            return
        task = self._progress.add_task(name, total=None, note="")
        try:
            yield
        finally:
            self._progress.remove_task(task)

    def bar(self, name: str, total: float | None) -> Callable[[float, str], None]:
        """A bar; call the result with how much of `total` is done and a note."""
        progress = self._progress
        if progress is None:
            return _Sparse(self.say, name, total)
        task = progress.add_task(name, total=total, note="")
        return lambda completed, note: progress.update(task, completed=completed, note=note)


class _Sparse:
    """A bar where there is no terminal: a line every few seconds."""

    def __init__(self, say: Callable[[str], None], name: str, total: float | None) -> None:
        self._say, self._name, self._total = say, name, total
        self._said_s = time.monotonic()

    def __call__(self, completed: float, note: str) -> None:
        now_s = time.monotonic()
        if self._total and now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            self._say(f"{self._name}: {completed / self._total:.0%} {note}".rstrip())


class WarmUpBar:
    """Programs as they are compiled: a bar for each stage, with the name of the latest."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._update: Callable[[float, str], None] | None = None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._update is None or done == 1:
            self._update = self._display.bar(f"compiling {total} programs", total)
        self._update(done, name)


class SearchLine:
    """How a search stands: on a terminal a moving line, elsewhere one line a few seconds apart."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._update = display.bar("planning", None)
        self._began_s = self._said_s = time.monotonic()

    def __call__(self, nodes: int, incumbent_rps: float | None, bound_rps: float | None) -> None:
        best = "none yet" if incumbent_rps is None else f"{incumbent_rps:.4g} req/s"
        bound = "" if bound_rps is None else f", bound {bound_rps:.4g}"
        gap = f", gap {bound_rps / incumbent_rps - 1:.2%}" if incumbent_rps and bound_rps is not None else ""
        note = f"best {best}{bound}{gap}, {nodes} nodes"
        self._update(nodes, note)
        now_s = time.monotonic()
        if not sys.stderr.isatty() and now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            self._display.say(f"planning, {now_s - self._began_s:.0f} s: {note}")
