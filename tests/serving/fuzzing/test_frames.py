"""Sockets that say anything to every port of a server, encrypted or not: it goes on, and shows nobody its insides."""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client, Tls, make_request
from tests.serving.certificates import Authority, Certificate
from tests.serving.fuzzing import frames
from tests.serving.fuzzing.caller import OURS
from tests.serving.servers import ServerProcess, faults, server_process

GENERATE = "/exegpt.v1.Generation/Generate"
BODY = make_request("x", max_tokens=2, ignore_eos=True).SerializeToString()
FRAMES, QUICK_S = 1_000_000, 3.0
FLAGS = ("--engine=fake", "--metrics_address=127.0.0.1:0", "--health_address=127.0.0.1:0")
PATIENCE_S = 0.05
"""How long a connection is listened to whose other side has not closed it."""


@contextlib.contextmanager
def going_on(server: ServerProcess, tls: Tls | None = None) -> Iterator[None]:
    """The block leaves the server as well as it was."""
    with Client(server.address, tls=tls) as client:
        yield
        assert client.generate("x", max_tokens=5, ignore_eos=True, timeout_s=60).finish.completion_tokens == 5
    with Client(server.address, tls=tls) as client:
        assert client.generate("x", max_tokens=5, ignore_eos=True, timeout_s=60).finish.completion_tokens == 5
    server.terminate()
    status, out, err = server.finish()
    assert (status, out.splitlines()[-1]) == (0, "stopped")
    assert faults(err) == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Certificate]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    return authority, authority.sign("server")


def test_a_call_by_hand_is_answered(tiny_model: Path) -> None:
    """Else what follows would show nothing."""
    with server_process(tiny_model, *FLAGS) as server, going_on(server):
        said = [frames.PREFACE, frames.frame(frames.SETTINGS, 0, 0), *frames.call(1, GENERATE, BODY)]
        answered = frames.speak(server.address, b"".join(said), 5.0)
        assert b"grpc-status" in answered
        assert answered.count(b"x-request-id") == 1


def test_random_frames_and_bytes_on_every_port(tiny_model: Path, full: bool) -> None:
    spoken = 0
    with server_process(tiny_model, *FLAGS) as server, going_on(server):
        ports = [server.address, server.address, server.address, *map(server.address_of, ("metrics", "health"))]
        end_s = float("inf") if full else time.monotonic() + QUICK_S
        number = 0
        while spoken < FRAMES and time.monotonic() < end_s:
            rng = random.Random(number)
            said = frames.conversation(rng, rng.choice([GENERATE, "/", "", "x" * 3000]), BODY)
            answered = frames.speak(rng.choice(ports), b"".join(said), PATIENCE_S)
            assert not OURS.search(answered.decode("latin-1")), f"conversation {number}"
            spoken += len(said)
            number += 1
    print(f"{spoken} frames in {number} conversations")


def test_noise_on_a_port_with_tls(tiny_model: Path, certificate: tuple[Authority, Certificate]) -> None:
    authority, own = certificate
    flags = (*FLAGS, f"--tls_cert={own.cert}", f"--tls_key={own.key}")
    with server_process(tiny_model, *flags) as server, going_on(server, Tls(ca=authority.cert)):
        rng = random.Random(0)
        # The second begins as a handshake does.
        for begin in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", frames.PREFACE, b"GET / HTTP/1.1\r\n\r\n"):
            for _ in range(20):
                answered = frames.speak(server.address, begin + rng.randbytes(300), PATIENCE_S)
                assert not OURS.search(answered.decode("latin-1"))


ODD = {
    "headers without an end": [frames.frame(frames.HEADERS, 0, 1, frames.headers(GENERATE))]
    + [frames.frame(frames.CONTINUATION, 0, 1, frames.field("x-long", "a" * 4000))] * 2000,
    "headers beyond the limit": [
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.headers(GENERATE, x_long="a" * 15000)),
    ],
    "as many streams as there are numbers": [
        each for number in range(5000) for each in frames.call(2 * number + 1, GENERATE, BODY)
    ],
    "streams begun and reset": [
        each
        for number in range(5000)
        for each in (
            *frames.call(2 * number + 1, GENERATE, BODY),
            frames.frame(frames.RST_STREAM, 0, 2 * number + 1, struct.pack(">I", 8)),
        )
    ],
    "settings without end": [frames.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 1))] * 20000,
    "pings without end": [frames.frame(frames.PING, 0, 0, b"12345678")] * 20000,
    "a window of nothing": [
        frames.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 0)),
        *frames.call(1, GENERATE, make_request("x", max_tokens=200).SerializeToString()),
    ],
    "a message that never comes": [
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.headers(GENERATE)),
        frames.frame(frames.DATA, 0, 1, struct.pack(">BI", 0, 2**32 - 1) + b"x"),
    ],
    "a call without a message": [
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, frames.headers(GENERATE)),
    ],
    "a compressed message that is none": [
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.headers(GENERATE, grpc_encoding="gzip")),
        frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(b"no gzip", compressed=1)),
    ],
    "a time-out that is none": [
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.headers(GENERATE, grpc_timeout="99999999999x")),
        frames.frame(frames.DATA, frames.END_STREAM, 1, frames.message(BODY)),
    ],
}


@pytest.fixture(scope="module")
def steady(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, *FLAGS) as server, going_on(server):
        yield server


def test_a_call_that_ends_without_a_message_is_told_so(steady: ServerProcess) -> None:
    said = [frames.PREFACE, frames.frame(frames.SETTINGS, 0, 0), *ODD["a call without a message"]]
    assert b"request: none came; send one message" in frames.speak(steady.address, b"".join(said), 2.0)


@pytest.mark.parametrize("oddity", ODD)
def test_odd_conversations(steady: ServerProcess, oddity: str) -> None:
    said = b"".join([frames.PREFACE, frames.frame(frames.SETTINGS, 0, 0), *ODD[oddity]])
    answered = frames.speak(steady.address, said, 1.0)
    assert not OURS.search(answered.decode("latin-1"))
    with Client(steady.address) as client:
        assert client.generate("x", max_tokens=5, ignore_eos=True, timeout_s=60).finish.completion_tokens == 5
