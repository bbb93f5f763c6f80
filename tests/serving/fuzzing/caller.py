"""Sends one call after the other to a method, whatever its bytes are, and looks at how each ends."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from tests.serving.fuzzing.doors import Method
from tests.serving.servers import ROOT

DEADLINE_S = 20.0
# Ends by it, if at all.
_WATCH, _WATCH_S = "/grpc.health.v1.Health/Watch", 0.05
_EXPECTED = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    "UNAVAILABLE",
}
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
# grpc.aio's own words where a call ends while its client writes: the status is lost on this side.
_FORGOTTEN = "Internal error from Core"
_OURS = "|".join(map(re.escape, [str(ROOT), sys.prefix, str(Path.home()), "site-packages", "Traceback"]))
OURS = re.compile(_OURS)
"""What no answer tells."""
_TELLING = re.compile(_OURS + r"|0x|ipv4:|127\.0\.0\.1|\.pyx?\b|/tmp/|line \d")


class Caller:
    """Of one server.

    Attributes:
      inputs: sent so far.
      codes: how calls, and requests within calls, ended.
      wrong: lines about ends that no input may bring.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inputs = 0
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._channel = channel

    async def call(self, method: Method, messages: Sequence[bytes]) -> None:
        """A call with these requests; to a method that takes one of them, with the first."""
        bodies = messages if method.takes_stream else messages[:1]
        self.inputs += len(bodies)
        timeout_s = _WATCH_S if method.path == _WATCH else DEADLINE_S
        try:
            if method.takes_stream:
                call = self._channel.stream_stream(method.path)(iter(bodies), timeout=timeout_s)
            else:
                call = self._channel.unary_stream(method.path)(bodies[0], timeout=timeout_s)
            async for answer in call:
                self._look_into(method, answer)
        except grpc.aio.AioRpcError as error:
            if not (error.details() or "").startswith(_FORGOTTEN):
                self._ended(method, error.code().name, error.details() or "")
        else:
            self._ended(method, "OK", "")

    def _ended(self, method: Method, code: str, details: str) -> None:
        self.codes[code] += 1
        # What the limits of one machine refuse says when to come again.
        known = code in _EXPECTED and (code != "UNAVAILABLE" or details.endswith("try again"))
        # Nothing else takes that long, unless the request's own deadline says how little it may.
        known |= code == "DEADLINE_EXCEEDED" and (method.path == _WATCH or details.startswith("the deadline "))
        if not known or _TELLING.search(details) or len(details) > 1000:
            self.wrong.append(f"{method.path}: {code}: {details[:300]}")

    def _look_into(self, method: Method, answer: bytes) -> None:
        """Ends of single requests are told in band."""
        try:
            message = method.response.FromString(answer)
        except DecodeError:
            self.wrong.append(f"{method.path}: an answer that is no message: {answer[:50]!r}")
            return
        for error in _repeated(message, "errors"):
            self._ended(method, _NAMES.get(error.code, "?"), error.message)
        if text := getattr(message, "error_message", ""):
            self._ended(method, "INVALID_ARGUMENT", text if isinstance(text, str) else "")


def _repeated(message: Message, name: str) -> Iterable[object]:
    return getattr(message, name, ())
