"""A line between clients and a server that can be cut: both sides hear a reset, as when a machine falls over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

_READ_BYTES = 2**16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class CutLine:
    """Connections through it go on until they are cut. Use `laid`.

    Attributes:
      address: where clients connect.
    """

    def __init__(self, server_address: str) -> None:
        self.address = ""
        host, _, port = server_address.rpartition(":")
        self._target = host, int(port)
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def laid(self) -> AsyncIterator[CutLine]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """All of the moment."""
        for writer in self._writers:
            # Some are closed already.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        both = {writer, there_writer}
        self._writers |= both
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
