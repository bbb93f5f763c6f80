"""A chat template in a process that may be ended: the parent's side of `exegpt_jax.text.render_process`.

An endless loop or a text of a gigabyte costs that process its life and one request its answer; the next request finds
a new process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping

from exegpt_jax.text.render_process import read_message, write_message
from exegpt_jax.text.sandbox import Refused

RENDER_CPU_S = 1.0
"""Processor time of one rendering; a long conversation takes some milliseconds."""
_WALL_S = 30.0
"""A backstop: a process that neither computes nor answers is stuck."""
_MEMORY_BYTES = 512 * 2**20
_KEPT_VARIABLES = ("TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Renderer:
    """One template; one rendering at a time. Raises Refused if the template does not compile within the caps."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._process = self._start()

    def render(self, variables: Mapping[str, object]) -> str:
        """Raises Refused with one line for the caller."""
        with self._lock:
            answer = self._ask(variables)
            if answer is None and -(self._process.wait()) not in (signal.SIGPROF, signal.SIGKILL):
                # Not of its own doing: somebody ended it. Once more.
                answer = self._ask(variables)
        match answer:
            case {"text": str(text)}:
                return text
            case {"refused": why}:
                raise Refused(str(why))
        raise Refused(f"the model's chat template takes more than {RENDER_CPU_S:g} s for them, or too much memory")

    def _ask(self, variables: Mapping[str, object]) -> dict[str, object] | None:
        """None if the process ended over it."""
        if self._process.poll() is not None:
            self._process = self._start()
        return _exchange(self._process, {"variables": dict(variables)})

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "exegpt_jax.text.render_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Nothing of ours that a template could find, and what this process imports.
            env={
                **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            },
            # Ctrl-C in a terminal is for the server, which still renders while it drains.
            start_new_session=True,
        )
        weakref.finalize(self, _end, process)
        first = {"source": self._source, "cpu_s": RENDER_CPU_S, "memory_bytes": _MEMORY_BYTES}
        answer = _exchange(process, first)
        if answer != {}:
            _end(process)
            raise Refused(str(answer["refused"]) if answer else "takes too much time or memory")
        return process


def _exchange(process: subprocess.Popen[bytes], message: dict[str, object]) -> dict[str, object] | None:
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(_WALL_S, process.kill)
    watchdog.start()
    try:
        write_message(process.stdin, message)
        return read_message(process.stdout)
    except BrokenPipeError:
        return None
    finally:
        watchdog.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            # What a broken pipe still held is flushed here.
            with contextlib.suppress(OSError):
                stream.close()
