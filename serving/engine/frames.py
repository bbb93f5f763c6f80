"""Messages on a stream of bytes: each behind its length, four bytes, little-endian."""

from __future__ import annotations

import asyncio
import socket
import struct

from google.protobuf.message import Message

_LENGTH = struct.Struct("<I")
_READ_BYTES = 2**18


def framed(message: Message) -> bytes:
    body = message.SerializeToString()
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bodies that come in on a socket, one by one, for a thread that may block."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._bytes = bytearray()

    def next(self) -> bytes | None:
        """Blocks until there is one; None when the other side has gone."""
        head = self._take(_LENGTH.size)
        return None if head is None else self._take(_LENGTH.unpack(head)[0])

    def _take(self, size: int) -> bytes | None:
        while len(self._bytes) < size:
            try:
                found = self._source.recv(_READ_BYTES)
            except ConnectionError:
                return None
            if not found:
                return None
            self._bytes += found
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The same for an event loop."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        return await reader.readexactly(_LENGTH.unpack(head)[0])
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
