"""`exegpt load` against real servers over the fake engine: slow ones, dying ones, several processes, every output."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from serving.load import LoadRequest, arrivals, run_load
from tests.serving.certificates import Authority
from tests.serving.servers import (
    RunningServer,
    ServerProcess,
    environment,
    exegpt,
    fake_service,
    running_server,
    server_process,
)

# What happens to the load while it runs: done from inside, so that it comes when something has been answered.
MEANWHILE = """
import os, signal, sys
from serving import cli
from serving.commands import load
action, process = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)
show, done = load._Bar.show, []
def and_then(self, samples, seconds):
    show(self, samples, seconds)
    if sum(sample.error is None for sample in samples) >= 5 and not done:
        done.append(True)
        os.kill(process or os.getpid(), getattr(signal, action))
load._Bar.show = and_then
sys.exit(cli.main(["load", *sys.argv[3:]]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt("load", *arguments), capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def run_until(action: str, process: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The load, with a signal to `process` (0: itself) once five requests have been answered."""
    command = [sys.executable, "-c", MEANWHILE, action, str(process), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)


def load_line(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    last = done.stdout.splitlines()[-1]
    assert last.startswith("LOAD ")
    return json.loads(last.removeprefix("LOAD "))


def test_a_slow_server_does_not_slow_the_arrivals(tiny_model: Path) -> None:
    """Every request leaves before the first is answered, and its wait is counted from its own time."""
    at_s = arrivals.drawn(100.0, burstiness=1.0, seed=2, count=24, until_s=math.inf).tolist()
    asked = [LoadRequest(f"p{i}", {"max_tokens": 200, "ignore_eos": True}, at) for i, at in enumerate(at_s)]
    with running_server(fake_service(tiny_model, fake_step_s=0.01, max_rows=12)) as slow:
        results = run_load(slow.address, asked)
    assert [result.planned_s for result in results] == at_s
    assert all(result.sent_s >= result.planned_s for result in results)
    # Twelve rows at a time, each for 200 steps of 10 ms: nobody ends before 2 s, and the last twelve wait so long.
    assert max(result.sent_s for result in results) < min(result.last_token_s for result in results)
    assert max(result.latency_with_wait_s for result in results) > 3.5
    assert all(result.encode_to_last_s < result.latency_with_wait_s for result in results)


@pytest.mark.parametrize("one_call", [False, True])
def test_processes_replay_a_trace_and_their_results_merge_exactly(
    server: RunningServer, tmp_path: Path, one_call: bool
) -> None:
    trace = tmp_path / "log.csv"
    rows = [(number * 0.04, 1 + number % 7, 1 + number % 23) for number in range(40)]
    lines = [f"{100 + at_s:.3f},{inputs},{outputs}" for at_s, inputs, outputs in rows]
    trace.write_text("\n".join(["when,in,out", *reversed(lines)]))
    done = run(
        f"--address={server.address}",
        f"--trace={trace}",
        "--arrival_column=when",
        "--input_column=in",
        "--output_column=out",
        "--speed=2",
        "--processes=2",
        "--latency_bound_s=0.05",
        f"--one_call={one_call}",
        f"--output={tmp_path / 'load.json'}",
        f"--chart={tmp_path / 'load.svg'}",
        f"--save_requests={tmp_path / 'requests.jsonl'}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = load_line(done)
    saved = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [row["index"] for row in saved] == list(range(40))
    assert [row["process"] for row in saved] == [0, 1] * 20
    assert [row["planned_s"] for row in saved] == pytest.approx([at_s / 2 for at_s, _, _ in rows], abs=1e-6)
    assert [(row["prompt_tokens"], row["tokens"]) for row in saved] == [(i, o) for _, i, o in rows]
    assert all(row["sent_s"] >= row["planned_s"] - 1e-6 for row in saved)

    latencies = sorted(row["message_s"][-1] - row["planned_s"] for row in saved)
    percentiles = found["latency_with_wait_s"]
    assert isinstance(percentiles, dict)
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert percentiles[name] == pytest.approx(latencies[math.ceil(40 * percent / 100) - 1], abs=1e-5)
    kept = sum(latency <= 0.05 for latency in latencies)
    assert found["goodput"]["requests"] == kept  # type: ignore[index]
    assert found["tokens"] == sum(outputs for _, _, outputs in rows)
    assert (found["requests"], found["answered"], found["errors"]) == (40, 40, {})
    assert len(found["client"]["cpu_shares"]) == 2  # type: ignore[index]
    written = json.loads((tmp_path / "load.json").read_text())
    assert written.items() >= found.items()
    assert written.keys() >= {"command", "date", "grpcio", "cpu", "cores", "seed"}
    assert (tmp_path / "load.svg").read_text().count("<svg") == 1


def test_a_closed_loop_keeps_its_number_in_flight_and_ends_in_time(server: RunningServer, tmp_path: Path) -> None:
    prompts, saved = tmp_path / "prompts.jsonl", tmp_path / "requests.jsonl"
    prompts.write_text('{"prompt": "a", "max_tokens": 3}\n{"prompt": [5, 6]}\n')
    done = run(
        f"--address={server.address}", f"--input={prompts}", "--max_tokens=11", "--ignore_eos", "--concurrency=3",
        "--duration_s=0.6", "--processes=2", f"--save_requests={saved}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    # The numbers of each process are its own; a prompt's parameters come before the flags'.
    assert {row["tokens"] for row in rows if row["index"] % 2 == 0} == {3}
    assert {row["tokens"] for row in rows if row["index"] % 2 == 1} == {11}
    assert all(row["planned_s"] <= 0.6 for row in rows)
    for row in rows:
        under_way = [
            r for r in rows if r["process"] == row["process"] and r["sent_s"] <= row["sent_s"] < r["message_s"][-1]
        ]
        assert len(under_way) <= (2 if row["process"] == 0 else 1)


def test_errors_are_counted_by_status(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, fake_step_s=0.05), max_requests=2) as small:
        done = run(f"--address={small.address}", "--prompt=x", "--max_tokens=60", "--ignore_eos", "--rate=inf",
                   "--requests=10", "--latency_bound_s=100", "--warmup=0")  # fmt: skip
        asked_too_much = run(
            f"--address={small.address}", "--prompt=x", "--max_tokens=6000", "--rate=9", "--requests=3"
        )
    assert done.returncode == 0
    found = load_line(done)
    assert (found["answered"], found["errors"]) == (2, {"UNAVAILABLE": 8})
    assert found["goodput"]["share"] == 0.2  # type: ignore[index]
    assert "8 UNAVAILABLE: 2 requests are waiting or running" in done.stdout
    assert asked_too_much.returncode == 1
    (line,) = asked_too_much.stderr.splitlines()
    assert line.startswith("exegpt: warmup: not answered: INVALID_ARGUMENT: max_tokens: 6000")


@pytest.mark.parametrize(
    "flags",
    [("--rate=50",), ("--concurrency=8", "--processes=2"), ("--concurrency=8", "--one_call")],
    ids=["open", "closed", "one_call"],
)
def test_a_server_that_dies_ends_the_load_and_what_was_measured_is_told(
    tiny_model: Path, flags: tuple[str, ...]
) -> None:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.002") as server:
        done = run_until("SIGKILL", server.process.pid, f"--address={server.address}", "--prompt=x", "--max_tokens=20",
                         "--ignore_eos", "--duration_s=600", *flags)  # fmt: skip
    check_ended_early(done, server)


def check_ended_early(done: subprocess.CompletedProcess[str], server: ServerProcess) -> None:
    assert done.returncode == 1
    found = load_line(done)
    assert isinstance(found["answered"], int)
    assert found["answered"] >= 5
    assert found["latency_s"]["p50"] > 0  # type: ignore[index]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"exegpt: address: {server.address} was lost: ")


def test_ctrl_c_ends_the_load_and_what_was_measured_is_told(server: RunningServer) -> None:
    done = run_until("SIGINT", 0, f"--address={server.address}", "--prompt=x", "--max_tokens=20", "--ignore_eos",
                     "--rate=50", "--requests=30000", "--processes=2")  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
    found = load_line(done)
    assert isinstance(found["answered"], int)
    assert found["answered"] >= 5
    assert found["unfinished"] == 30000 - found["requests"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--address=127.0.0.1:1", "--rate=3", "--prompt=a"), "address: nobody answers at 127.0.0.1:1; start"),
        (("--rate=3", "--prompt=a", "--latency_bound_s=0"), "latency_bound_s: 0.0 is no bound; give seconds above 0"),
        (("--rate=3", "--prompt=a", "--timeout_s=0"), "timeout_s: 0 is no deadline"),
        (("--rate=3", "--prompt=a", "--chart=load.png"), "chart: load.png has no known ending"),
    ],
)  # fmt: skip
def test_what_cannot_begin_is_one_line(flags: tuple[str, ...], message: str) -> None:
    done = run(*flags)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"exegpt: {message}")


@pytest.mark.parametrize("one_call", [False, True])
def test_a_locked_server_is_loaded_with_a_key_over_tls(tiny_model: Path, tmp_path: Path, one_call: bool) -> None:
    authority = Authority(tmp_path)
    own, ours = authority.sign("server"), authority.sign("client")
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("load client 0123456789abcdef\n")
    key.write_text("0123456789abcdef\n")
    locks = (f"--tls_cert={own.cert}", f"--tls_key={own.key}", f"--tls_client_ca={authority.cert}", f"--keys={keys}")
    asked = (
        *(f"--tls_ca={authority.cert}", f"--tls_cert={ours.cert}", f"--tls_key={ours.key}"),
        *("--prompt=x", "--max_tokens=4", "--concurrency=4", "--requests=20", f"--one_call={one_call}"),
    )
    with server_process(tiny_model, "--engine=fake", *locks) as server:
        done = run(f"--address={server.address}", f"--key_file={key}", *asked)
        refused = run(f"--address={server.address}", *asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_line(done)["answered"] == 20
    assert refused.returncode == 1
    assert refused.stderr.startswith("exegpt: warmup: not answered: UNAUTHENTICATED: ")
