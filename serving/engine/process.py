"""One engine process as its front end holds it: started, written to, listened to, ended."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from serving.engine.frames import framed, read_frame
from serving.proto.exegpt.engine.v1 import link_pb2 as pb

_ROOT = str(Path(__file__).resolve().parents[2])


class EngineProcess:
    """Use `start`. Messages wait in memory while the process does not read them; who asks is bounded elsewhere."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, environment: Mapping[str, str] | None = None) -> EngineProcess:
        """A process that waits for a Build.

        Args:
          environment: added to this process's own.
        """
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.engine.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
                # Signals of the terminal are for the front end.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: pb.ToEngine) -> None:
        """Nothing comes of it where the process has gone: `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(framed(message))

    async def receive(self) -> pb.FromEngine | None:
        """The next message; None when the process has gone, after all that it said."""
        body = await read_frame(self._reader)
        return None if body is None else pb.FromEngine.FromString(body)

    def kill(self) -> None:
        """At once, stopped processes too."""
        self._process.kill()

    async def end(self, patience_s: float = 5.0) -> int:
        """Closes the line, which ends the process, and returns its status; negative for a signal."""
        self._writer.close()
        try:
            return await asyncio.to_thread(self._process.wait, patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)
