"""Probes of grpc.health.v1 in processes of their own, through warm-up and drain: every service, Check and Watch."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from serving.client import Client
from tests.serving.clients import foreign
from tests.serving.servers import fake_service, running_server, server_process

SERVICES = ("", "exegpt.v1.Generation", "inference.GRPCInferenceService")


@contextlib.contextmanager
def watches(address: str) -> Iterator[list[subprocess.Popen[str]]]:
    """One for each service."""
    started = [foreign.start("health_watch.py", address, service) for service in SERVICES]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def next_lines(processes: list[subprocess.Popen[str]]) -> set[str]:
    return {process.stdout.readline().strip() for process in processes if process.stdout is not None}


def test_warm_up_and_drain(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model), warm=False) as server, watches(server.address) as probes:
        assert next_lines(probes) == {"NOT_SERVING NOT_SERVING"}
        server.call(server.frontend.open, server.text, server.runner)
        server.call(server.states.set_serving, True)
        assert next_lines(probes) == {"SERVING SERVING"}
        server.call(server.states.set_serving, False)
        server.drain()
        assert next_lines(probes) == {"NOT_SERVING NOT_SERVING"}
        server.call(server.states.close)
        assert next_lines(probes) == {"ended"}


def test_sigterm_turns_every_probe_while_an_answer_goes_on(tiny_model: Path) -> None:
    flags = ("--engine=fake", "--fake_step_s=0.02")
    with server_process(tiny_model, *flags) as server, watches(server.address) as probes:
        assert next_lines(probes) == {"SERVING SERVING"}
        with Client(server.address) as client:
            chunks = client.stream("long", max_tokens=200, ignore_eos=True)
            first = next(chunks)
            server.terminate()
            assert next_lines(probes) == {"NOT_SERVING NOT_SERVING"}
            rest = list(chunks)
        assert len(first.token_ids) + sum(len(chunk.token_ids) for chunk in rest) == 200
        assert next_lines(probes) == {"ended"}
        assert server.finish()[0] == 0
