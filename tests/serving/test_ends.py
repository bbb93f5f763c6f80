"""Ends of a server in every state that it can be in: by SIGTERM with status 0, by SIGKILL without an engine left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import Client, ServerError
from tests.serving.servers import ServerProcess, engine_pid, is_alive, server_process

FLAGS = ("--engine=fake", "--fake_step_s=0.05", "--decode_iterations=4", "--cache_tokens=200")
Do = Callable[[ServerProcess], None]


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "still not so"
        time.sleep(0.01)


def engine_of(server: ServerProcess, but: int | None = None) -> int:
    until(lambda: engine_pid(server) not in (None, but))
    pid = engine_pid(server)
    assert pid is not None
    return pid


def kill_engine(server: ServerProcess) -> None:
    """The next one is being built when this returns."""
    pid = engine_of(server)
    os.kill(pid, signal.SIGKILL)
    engine_of(server, but=pid)


def stop_engine(server: ServerProcess) -> None:
    os.kill(engine_of(server), signal.SIGSTOP)


def begin_drain(server: ServerProcess) -> None:
    server.terminate()
    assert server.process.stdout is not None
    while not server.process.stdout.readline().startswith("draining"):
        pass


def drain_without_an_engine(server: ServerProcess) -> None:
    begin_drain(server)
    kill_engine(server)


@contextlib.contextmanager
def asked(server: ServerProcess) -> Iterator[list[str]]:
    """With an answer under way; how it ended, once the block has."""
    ended: list[str] = []
    with Client(server.address, retries=False) as client:
        stream = client.stream("x", max_tokens=60, ignore_eos=True, timeout_s=60)
        next(stream)
        yield ended
        try:
            ended.append(f"{sum(len(chunk.token_ids) for chunk in stream) > 0}")
        except ServerError as error:
            ended.append(error.code)


WAYS: dict[str, Do] = {
    "serving": lambda server: None,
    "its engine is built again": kill_engine,
    "its engine is silent": stop_engine,
    "draining": begin_drain,
    "draining without an engine": drain_without_an_engine,
}


@pytest.mark.parametrize("way", WAYS)
def test_sigterm_ends_it_with_0_and_the_answer_comes_first(tiny_model: Path, way: str) -> None:
    with server_process(tiny_model, *FLAGS, "--drain_s=30") as server:
        with asked(server) as ended:
            WAYS[way](server)
            server.terminate()
        status, out, err = server.finish()
        left = engine_pid(server)
    # While it drains, a second signal cuts what is under way short.
    assert ended == (["UNAVAILABLE"] if "draining" in way else ["True"])
    assert (status, out.splitlines()[-1], left) == (0, "stopped", None)
    assert "Traceback" not in err


@pytest.mark.parametrize("engine_stands", [False, True])
def test_sigterm_while_warming_up(tiny_model: Path, engine_stands: bool) -> None:
    with server_process(tiny_model, *FLAGS, wait_ready=False) as server:
        engine = engine_of(server)
        if engine_stands:
            os.kill(engine, signal.SIGSTOP)
        server.terminate()
        begin_s = time.monotonic()
        status, out, err = server.finish()
        assert (status, out.splitlines()[-1]) == (0, "stopped while warming up")
        assert time.monotonic() - begin_s < 30
        assert not is_alive(engine)
    assert "Traceback" not in err


def test_an_engine_that_dies_while_the_server_warms_up_is_one_line(tiny_model: Path) -> None:
    with server_process(tiny_model, *FLAGS, wait_ready=False) as server:
        os.kill(engine_of(server), signal.SIGKILL)
        status, _, err = server.finish()
    assert status == 1
    assert err.splitlines()[-1] == "exegpt: engine: the engine process ended with signal 9"
    assert "Traceback" not in err


@pytest.mark.parametrize("way", ["warming up", "serving", "its engine is built again", "its engine is silent"])
def test_a_front_end_that_is_killed_leaves_no_engine(tiny_model: Path, way: str) -> None:
    with server_process(tiny_model, *FLAGS, wait_ready=way != "warming up") as server, contextlib.ExitStack() as stack:
        if way != "warming up":
            stack.enter_context(asked(server))
            WAYS[way](server)
        engine = engine_of(server)
        server.process.kill()
        until(lambda: not is_alive(engine))
