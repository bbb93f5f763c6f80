"""smg in front of a server, as its users start it, and the stubs that the server needs for it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.clients import foreign
from tests.serving.servers import ServerProcess, server_process

_READY_S = 120


@contextlib.contextmanager
def engine(model: Path, scratch: Path, *flags: str) -> Iterator[ServerProcess]:
    """`exegpt serve --vllm_engine`. Of the foreign environment it sees the stubs alone, as the extra brings them."""
    for found in foreign.ENVIRONMENT.glob("lib/python*/site-packages/smg_grpc_proto*"):
        (scratch / found.name).symlink_to(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(scratch))
        with server_process(model, "--vllm_engine", *flags) as server:
            yield server


@contextlib.contextmanager
def gateway(worker: str, log: Path) -> Iterator[str]:
    """The address of the HTTP API, once smg knows the worker's model and tokenizer. It is killed at the end."""
    port, metrics_port = _free_ports(2)
    arguments = [
        *("--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"grpc://{worker}"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        *("--worker-startup-check-interval", "1"),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(foreign.PYTHON), "-m", "smg", "launch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=foreign.environment(),
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, address, log)
        yield address
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end_s = time.monotonic() + _READY_S
    while not _is_ready(address):
        assert process.poll() is None, f"smg ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < end_s, f"smg is not ready:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readiness", timeout=10):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Free a moment ago; smg takes no port 0."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
