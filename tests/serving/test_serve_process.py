"""`exegpt serve` as a process: addresses, drain on SIGTERM, exit statuses, and the client command."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import Client, ServerError
from serving.load import LoadRequest, LoadResult, run_load, summarise
from tests.serving.servers import environment, exegpt, server_process


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt(*arguments), capture_output=True, text=True, timeout=120, env=environment(), input=given, check=False
    )


def test_sigterm_loses_no_live_stream(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    """Health turns at once, what is new is refused, what was admitted is answered whole, and the exit status is 0."""
    count = 200 if full else 60
    timeline = tmp_path / "trace.json"
    flags = ("--engine=fake", "--fake_step_s=0.01", f"--timeline={timeline}", f"--max_rows={count}")
    with server_process(tiny_model, *flags) as server:
        results: list[LoadResult] = []
        requests = [LoadRequest(f"p {i}", {"max_tokens": 100, "ignore_eos": True}) for i in range(count)]
        load = threading.Thread(target=lambda: results.extend(run_load(server.address, requests)))
        load.start()
        health = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        time.sleep(0.8)
        sent_s = time.monotonic()
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - sent_s < 2
        with Client(server.address) as client, pytest.raises(ServerError, match="UNAVAILABLE: the server is stopping"):
            client.generate("too late")
        load.join(60)
        status, out, _ = server.finish()
    assert status == 0
    assert out.splitlines()[-1] == "stopped"
    assert [result.error for result in results] == [None] * count
    assert {len(result.token_ids) for result in results} == {100}
    assert json.loads(timeline.read_text())["traceEvents"]


def test_drain_ends_in_time_and_tells_the_rest(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.05", "--drain_s=0.3") as server:
        client = Client(server.address)
        stream = client.stream("long", max_tokens=200, ignore_eos=True)
        next(stream)
        server.terminate()
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            list(stream)
        assert server.finish()[0] == 0


def test_a_taken_port_is_one_line(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake") as server:
        second = run("serve", f"--model={tiny_model}", "--engine=fake", f"--address={server.address}")
        server.terminate()
        assert server.finish()[0] == 0
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(f"exegpt: address: {server.address} cannot be bound")
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--address=0.0.0.0:0", "address: 0.0.0.0 is not this machine's loopback"),
        ("--address=example.org:80", "address: example.org is not this machine's loopback"),
        ("--address=nowhere", "address: 'nowhere' is not host:port"),
        ("--model=/nonexistent", "model: /nonexistent is no directory"),
        ("--policy=fifo", "flag --policy=fifo: value should be one of <rra|static|iteration|chunked>"),
        ("--max_requests=0", "flag --max_requests=0: "),
        ("--nonsense=1", "Unknown command line flag 'nonsense'"),
        ("more", "arguments: 'more' is no flag"),
    ],
)
def test_bad_flags_are_one_line(tiny_model: Path, flag: str, line: str) -> None:
    done = run("serve", f"--model={tiny_model}", "--engine=fake", "--address=127.0.0.1:0", flag)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"exegpt: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_client_command_prints_the_answer(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake") as server:
        reply = Client(server.address).generate("hello", max_tokens=12)
        asked = run("client", f"--address={server.address}", "--prompt=-", "--max_tokens=12", given="hello")
        refused = run("client", f"--address={server.address}", "--prompt=x", "--temperature=7")
        server.terminate()
        server.finish()
    assert asked.returncode == 0
    assert asked.stdout == reply.text + "\n"
    assert f"{reply.finish.completion_tokens} generated" in asked.stderr
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == ["exegpt: INVALID_ARGUMENT: temperature: 7.0 is not a number in [0, 2]"]


def test_load_open_and_closed(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.001") as server:
        seen: list[int] = []
        closed = run_load(
            server.address,
            [LoadRequest("x", {"max_tokens": 8, "ignore_eos": True}) for _ in range(12)],
            concurrency=3,
            on_result=lambda result: seen.append(result.index),
        )
        opened = run_load(server.address, [LoadRequest("x", {"max_tokens": 8}, at_s=i * 0.05) for i in range(6)])
        failing = run_load(server.address, [LoadRequest("x", {"top_p": 3.0}), LoadRequest("x", {"max_tokens": 2})])
        server.terminate()
        server.finish()
    assert sorted(seen) == list(range(12))
    summary = summarise(closed)
    assert (summary.requests, summary.errors, summary.tokens) == (12, 0, 96)
    assert 0 < summary.time_to_first_token_p50_s <= summary.latency_p50_s <= summary.latency_p99_s
    assert all(result.sent_s >= i * 0.05 for i, result in enumerate(opened))
    assert [result.index for result in opened] == list(range(6))
    assert failing[0].error is not None
    assert failing[1].error is None
    assert summarise(failing).errors == 1
