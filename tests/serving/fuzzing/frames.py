"""HTTP/2 written by hand (RFC 9113), right or wrong: frames, a call's headers, and sockets that say anything."""

from __future__ import annotations

import random
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
_FLAGS = (0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS, 0x8, 0x20, 0xFF)


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def field(name: str, value: str) -> bytes:
    """A header, literal and without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(_length(len(part)) + part for part in (name.encode(), value.encode()))


def _length(length: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if length < 127:
        return bytes([length])
    rest, found = length - 127, bytearray([127])
    while rest >= 128:
        found.append(rest % 128 + 128)
        rest //= 128
    return bytes([*found, rest])


def headers(path: str, **more: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **{name.replace("_", "-"): value for name, value in more.items()}}
    return b"".join(field(name, value) for name, value in fields.items())


def message(body: bytes, compressed: int = 0) -> bytes:
    """As gRPC puts it into DATA."""
    return struct.pack(">BI", compressed, len(body)) + body


def call(stream: int, path: str, body: bytes) -> list[bytes]:
    """Frames of one that would be answered."""
    return [
        frame(HEADERS, END_HEADERS, stream, headers(path)),
        frame(DATA, END_STREAM, stream, message(body)),
    ]


def random_frame(rng: random.Random) -> bytes:
    kind = rng.choice([*range(10), 10, 200])
    body = rng.choice([b"", b"\0" * 4, rng.randbytes(8), rng.randbytes(6), rng.randbytes(40), b"\xff" * 17000])
    return frame(kind, rng.choice(_FLAGS), rng.choice([0, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1]), body)


def conversation(rng: random.Random, path: str, body: bytes) -> list[bytes]:
    """What one connection says: frames in their order for the most part, and then not."""
    said = [PREFACE, frame(SETTINGS, 0, 0)]
    for number in range(rng.randint(1, 12)):
        said += call(2 * number + 1, path, body)
    for _ in range(rng.randint(1, 6)):
        place = rng.randint(0, len(said))
        match rng.randrange(6):
            case 0:
                said.insert(place, random_frame(rng))
            case 1:
                said.insert(place, rng.randbytes(rng.randint(1, 60)))
            case 2 if place < len(said):
                said[place] = said[place][: rng.randint(0, len(said[place]))]
            case 3 if place < len(said):
                said[place:place] = [said[place]] * 3
            case 4:
                said.insert(place, frame(RST_STREAM, 0, rng.choice([1, 3, 5, 99]), struct.pack(">I", 8)))
            case _:
                rng.shuffle(said)
    return said


def speak(address: str, said: bytes, timeout_s: float) -> bytes:
    """Says it all on a connection of its own; what was answered until the other side closed or the time was over."""
    host, _, port = address.rpartition(":")
    found = bytearray()
    with socket.create_connection((host, int(port)), timeout=timeout_s) as line:
        try:
            line.sendall(said)
            while data := line.recv(65536):
                found += data
        except (TimeoutError, ConnectionError):
            pass
    return bytes(found)
