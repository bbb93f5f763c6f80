"""A process that does nothing but render one chat template, so that it can be ended: `Renderer` is its other side.

    -> {"source": ..., "cpu_s": ..., "memory_bytes": ...}     <- {} or {"refused": ...}
    -> {"variables": {...}}                                   <- {"text": ...} or {"refused": ...}

JSON behind its length in four bytes, over standard input and output. The kernel ends the process when one message has
cost more processor time than the cap, whatever the interpreter is doing; memory beyond the cap is not given; files
cannot be written, nor more than a few opened. End of input ends it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from typing import IO

import jinja2

from exegpt_jax.text import sandbox

LENGTH = struct.Struct("<I")
_MOST_FILES = 16


def read_message(stream: IO[bytes]) -> dict[str, object] | None:
    """None at the end of the stream, or in the middle of a message whose writer has ended."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = stream.read(size := LENGTH.unpack(head)[0])
    return json.loads(body) if len(body) == size else None


def write_message(stream: IO[bytes], message: dict[str, object]) -> None:
    # ASCII: JSON's escapes carry lone surrogates too.
    body = json.dumps(message).encode("ascii")
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    given, taken = sys.stdin.buffer, sys.stdout.buffer
    first = read_message(given)
    if first is None:
        return
    cpu_s, memory_bytes = float(str(first["cpu_s"])), int(str(first["memory_bytes"]))
    _limit(memory_bytes)
    # A parent may have handed down that it is ignored.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    with _timed(cpu_s):
        try:
            template = sandbox.compiled(str(first["source"]))
        except sandbox.Refused as error:
            write_message(taken, {"refused": str(error)})
            return
    write_message(taken, {})
    while (message := read_message(given)) is not None:
        with _timed(cpu_s):
            answer = _answer(template, message["variables"])
        write_message(taken, answer)


def _answer(template: jinja2.Template, variables: object) -> dict[str, object]:
    assert isinstance(variables, dict)
    try:
        return {"text": sandbox.rendered(template, variables)}
    except sandbox.Refused as error:
        return {"refused": str(error)}


def _limit(memory_bytes: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MOST_FILES),
    ):
        # Not every system knows each.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


@contextlib.contextmanager
def _timed(cpu_s: float) -> Iterator[None]:
    """Inside, the kernel counts processor time; SIGPROF, which nobody handles, ends the process at the cap."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


if __name__ == "__main__":
    main()
