"""h2load (Debian's nghttp2-client): many calls at the speed of C, well-formed and not, by a client that is no gRPC."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client, make_request
from tests.serving.clients import foreign
from tests.serving.servers import ServerProcess, faults, server_process

UNPACKED = foreign.ROOT / ".cache" / "nghttp2"
H2LOAD = shutil.which("h2load", path=os.pathsep.join([os.environ.get("PATH", ""), str(UNPACKED / "usr" / "bin")]))
pytestmark = pytest.mark.skipif(H2LOAD is None, reason="foreign clients: no h2load here; .ci/run clients unpacks it")
CHECK, GENERATE = "/grpc.health.v1.Health/Check", "/exegpt.v1.Generation/Generate"
GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, "--engine=fake") as running:
        yield running
        running.terminate()
        status, _, err = running.finish()
        assert (status, faults(err)) == (0, [])


def message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


def load(server: ServerProcess, scratch: Path, path: str, body: bytes | None, *arguments: str) -> dict[str, int]:
    """600 requests over 4 connections, 20 at a time on each: how many came to what."""
    given = []
    if body is not None:
        (scratch / "body").write_bytes(body)
        given = ["-d", str(scratch / "body")]
    libraries = str(UNPACKED / "usr" / "lib" / f"{os.uname().machine}-linux-gnu")
    done = subprocess.run(
        [str(H2LOAD), "-n600", "-c4", "-m20", "-N60", *given, *arguments, f"http://{server.address}{path}"],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        check=True,
    )
    (counts,) = re.findall(r"^requests: (.*)$", done.stdout, re.MULTILINE)
    (codes,) = re.findall(r"^status codes: (.*)$", done.stdout, re.MULTILINE)
    return {name: int(count) for count, name in re.findall(r"(\d+) ([\w-]+)", f"{counts}, {codes}")}


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHECK, b""), (GENERATE, make_request("hello", max_tokens=3, ignore_eos=True).SerializeToString())],
)
def test_well_formed_calls_are_answered(server: ServerProcess, tmp_path: Path, path: str, body: bytes) -> None:
    found = load(server, tmp_path, path, message(body), *GRPC)
    assert (found["succeeded"], found["2xx"], found["errored"], found["timeout"]) == (600, 600, 0, 0)


MALFORMED: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
    "bytes that are no message": (GENERATE, message(b"\xff" * 60), GRPC),
    "bytes without a length": (GENERATE, b"\xff" * 60, GRPC),
    "no body at all": (GENERATE, None, (*GRPC, "-H", ":method: POST")),
    "a body that ends early": (GENERATE, struct.pack(">BI", 0, 1000) + b"x", GRPC),
    "a body beyond the limit": (GENERATE, message(b"x" * (5 * 2**20)), GRPC),
    "no method": ("/nowhere", message(b""), GRPC),
    "no gRPC": (GENERATE, message(b""), ("-H", "content-type: text/html")),
    "a page": ("/", None, ()),
    "headers beyond the limit": (CHECK, message(b""), (*GRPC, "-H", "x-long: " + "a" * 20000)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_calls_end_and_others_are_answered(server: ServerProcess, tmp_path: Path, what: str) -> None:
    path, body, arguments = MALFORMED[what]
    found = load(server, tmp_path, path, body, *arguments)
    # Each came to an end; which one is told in trailers, which h2load does not read.
    assert (found["done"], found["timeout"]) == (600, 0)
    with Client(server.address) as client:
        assert client.generate("x", max_tokens=5, ignore_eos=True, timeout_s=60).finish.completion_tokens == 5
