"""The demo's worker as its client holds it: started, listened to, and ended with the `with` block."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from serving.demo.messages import Figures, Message, Order, Step, parse

_ROOT = str(Path(__file__).resolve().parents[2])
_PATIENCE_S = 240.0
"""The longest silence: between two lines nothing takes more than a compilation."""


class Worker:
    """A worker process. Its standard error is kept back and shown only if it fails."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._errors: collections.deque[str] = collections.deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.demo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment(),
            # Ctrl-C is the client's to handle; the worker ends when its input does.
            start_new_session=True,
        )
        for work in (self._read_messages, self._read_errors):
            threading.Thread(target=work, daemon=True).start()

    def serve(self, *flags: str) -> str:
        """Has it run what these flags of `exegpt serve` say; returns the address."""
        return self._ask(Order("serve", flags), "serving").text

    def again(self) -> str:
        """Has it run what was stopped, with nothing measured yet."""
        return self._ask(Order("again"), "serving").text

    def stop(self) -> Figures:
        """Has it end the plan that it runs; returns what it measured."""
        figures = self._ask(Order("stop"), "stopped").figures
        assert figures is not None, "something was served"
        return figures

    def _ask(self, order: Order, step: Step) -> Message:
        """The answer to an order; lines on the way are shown. Raises ValueError if the worker fails."""
        assert self._process.stdin is not None
        # A worker that has ended says why in its last message.
        with contextlib.suppress(BrokenPipeError):
            order.send(self._process.stdin)
        while True:
            try:
                message = self._messages.get(timeout=_PATIENCE_S)
            except queue.Empty:
                raise ValueError(f"server process: silent for {_PATIENCE_S:.0f} s; stopped") from None
            if message is None:
                self._process.wait(timeout=10)
                said = self._errors[-1] if self._errors else "nothing"
                raise ValueError(f"server process: ended with status {self._process.returncode}, having said {said!r}")
            if message.step == "failed":
                raise ValueError(message.text)
            if message.step == step:
                return message
            self._on_line(message.text)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10 if kind is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(parse(line))
        self._messages.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.strip())


def cache_folder(name: str) -> Path:
    """Where this program keeps what it makes again otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "exegpt" / name


def environment() -> dict[str, str]:
    """For the demo's processes: they find this package, and compiled programs stay on disk, so that the second demo
    starts at once; the user's own settings come first.
    """
    paths = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **os.environ,
        "PYTHONPATH": paths,
    }
