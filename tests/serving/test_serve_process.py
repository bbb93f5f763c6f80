"""`exegpt serve` as a process: addresses, exit statuses, the client command, and loads. Its drain: `test_drain`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serving.client import Client
from serving.load import LoadRequest, run_load, summarise
from tests.serving.servers import environment, exegpt, server_process


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt(*arguments), capture_output=True, text=True, timeout=120, env=environment(), input=given, check=False
    )


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
