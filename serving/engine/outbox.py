"""What the engine process says: in the order of its saying, and nobody who speaks waits for who listens.

A thread of its own writes. What is short and has nothing before it goes out at once, on the thread that says it: a
first token is not to wait until the interpreter passes from one thread to another.
"""

from __future__ import annotations

import collections
import socket
import threading

from exegpt_jax.runner.events import Event
from serving.engine.frames import framed
from serving.engine.wire import from_events
from serving.proto.exegpt.engine.v1 import link_pb2 as pb

Said = pb.FromEngine | list[Event]

# More take the Runner longer to put into bytes than another thread takes to wake.
_FEW_EVENTS = 8


class Outbox:
    """On one socket; `put` from any thread."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        # The first one is being written until it is out.
        self._waiting: collections.deque[Said | bytes] = collections.deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def put(self, said: Said) -> None:
        """A message, or one hand-over of the Runner's."""
        with self._changed:
            rest: Said | bytes = said
            if not self._waiting and not (isinstance(said, list) and len(said) > _FEW_EVENTS):
                rest = self._begin(_bytes_of(said))
                if not rest:
                    return
            self._waiting.append(rest)
            self._changed.notify()

    def _begin(self, data: bytes) -> bytes:
        """Writes what there is room for; what is left."""
        try:
            return data[self._line.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError:
            # Nobody listens any more: the thread that reads hears of it, too.
            return b""

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                said = self._waiting[0]
            try:
                self._line.sendall(said if isinstance(said, bytes) else _bytes_of(said))
            except OSError:
                return
            with self._changed:
                self._waiting.popleft()


def _bytes_of(said: Said) -> bytes:
    return framed(pb.FromEngine(events=from_events(said)) if isinstance(said, list) else said)
