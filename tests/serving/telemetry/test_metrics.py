"""Metrics of a live server: every name that was promised, right while it works, and nothing left behind when it has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client, ServerError
from tests.serving.servers import ServerProcess, server_process
from tests.serving.telemetry.scraped import families, load, until, value
from tests.serving.test_planned import make_plan

PROMISED = {
    *("exegpt_time_to_first_token_seconds", "exegpt_inter_token_latency_seconds", "exegpt_request_duration_seconds"),
    *("exegpt_queue_seconds", "exegpt_requests", "exegpt_tokens", "exegpt_phase_seconds", "exegpt_stage_busy_ratio"),
    *("exegpt_batch_size", "exegpt_kv_bytes", "exegpt_compilations", "exegpt_latency_bound_seconds"),
    *("exegpt_latency_bound_misses", "exegpt_predicted_phase_seconds", "exegpt_simulator_error_ratio"),
    *("exegpt_schedule_info", "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    *("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds"),
    *("exegpt_queue_requests", "exegpt_queue_tokens", "exegpt_queue_bytes", "exegpt_refusals", "exegpt_period_seconds"),
    *("exegpt_predicted_queue_seconds", "exegpt_predicted_request_seconds", "exegpt_admission_margin_seconds"),
    *("vllm:request_queue_time_seconds", "vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success"),
}
# Gauges that say how things are made, or tell of the last minute; every other one counts what is there at present.
STANDING = {
    *(
        "exegpt_info",
        "exegpt_server_state",
        "exegpt_requests_limit",
        "exegpt_latency_bound_seconds",
        "exegpt_engine_up",
    ),
    *("exegpt_schedule_info", "exegpt_simulator_error_ratio", "exegpt_stage_busy_ratio", "python_info"),
    *("exegpt_queue_tokens_limit", "exegpt_queue_bytes_limit"),
    *("exegpt_period_seconds", "exegpt_admission_margin_seconds"),
}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("planned")
    plan = make_plan(tiny_model, folder, (range(4, 40, 6), range(1, 30, 4)), 2**20)
    made_from = (f"--plan={plan}", f"--profile={folder / 'profile.json'}", f"--cluster={folder / 'cluster.json'}")
    flags = ("--engine=fake", "--fake_step_s=0.002", "--metrics_address=127.0.0.1:0", *made_from)
    with server_process(tiny_model, *flags) as running:
        yield running


def test_every_promised_name_has_numbers(server: ServerProcess) -> None:
    address = server.address_of("metrics")
    load(server.address, 40)
    until(lambda: value(families(address), "exegpt_batch_size_sum", phase="encode") == 40)
    found = families(address)
    assert found.keys() >= PROMISED
    assert not [name for name in PROMISED if not found[name].samples]
    assert value(found, "exegpt_requests_total", outcome="length") == 40
    assert value(found, "exegpt_tokens_total", kind="generated") == 40 * 12
    assert value(found, "vllm:generation_tokens_total", model_name="tiny_model0") == 40 * 12
    for own, theirs in (
        ("exegpt_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
        ("exegpt_request_duration_seconds", "vllm:e2e_request_latency_seconds"),
        ("exegpt_queue_seconds", "vllm:request_queue_time_seconds"),
    ):
        assert value(found, f"{own}_count") == value(found, f"{theirs}_count") == 40
    assert value(found, "exegpt_latency_bound_seconds", **{"from": "encode"}) == 10
    assert value(found, "exegpt_latency_bound_misses_total") == 0
    for part in ("encode", "decode", "whole"):
        measured = value(found, "exegpt_phase_seconds_count", phase=part)
        assert measured > 0
        assert value(found, "exegpt_predicted_phase_seconds_count", phase=part) == measured
    # Predicted / measured - 1; the fake engine's times are no profile's.
    assert -1 < value(found, "exegpt_simulator_error_ratio", phase="encode") != 0
    assert 0 < value(found, "exegpt_stage_busy_ratio", stage="0") <= 1


@pytest.fixture
def slow(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.02", "--metrics_address=127.0.0.1:0") as running:
        yield running


def test_gauges_rise_with_the_load_and_leave_nothing(slow: ServerProcess) -> None:
    server, address = slow, slow.address_of("metrics")

    def now(sample: str, **labels: str) -> float:
        return value(families(address), sample, **labels)

    clients = [Client(server.address) for _ in range(3)]
    streams = [client.stream("long", max_tokens=240, ignore_eos=True) for client in clients]
    for stream in streams:
        next(stream)
    working = families(address)
    assert value(working, "exegpt_requests_admitted") == 3
    assert value(working, "vllm:num_requests_running") == value(working, "exegpt_runner_requests", state="running") == 3
    assert 0 < value(working, "exegpt_kv_bytes", state="live") <= value(working, "exegpt_kv_bytes", state="allocated")
    assert 0 < value(working, "vllm:kv_cache_usage_perc") <= 1
    with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
        clients[0].generate("x", top_p=3.0)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    load(server.address, 20, tokens=4)
    until(lambda: now("exegpt_requests_admitted") == now("exegpt_kv_bytes", state="live") == 0)
    rested = families(address)
    assert value(rested, "exegpt_requests_total", outcome="abort") == 3
    assert value(rested, "exegpt_requests_total", outcome="invalid") == 1
    present = {
        (name, *sample.labels.items()): sample.value
        for name, family in rested.items()
        if family.type == "gauge" and name not in STANDING and "process_" not in name
        for sample in family.samples
        if sample.labels.get("state") != "allocated"
    }
    assert len(present) >= 8
    assert not {key: found for key, found in present.items() if found}
    for client in clients:
        client.close()


def test_the_address_is_refused_beyond_this_machine_and_where_it_is_taken(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--metrics_address=127.0.0.1:0") as first:
        taken = first.address_of("metrics")
        for given, line in (
            (taken, f"exegpt: metrics_address: {taken} cannot be bound; is another server listening there?"),
            ("0.0.0.0:0", "exegpt: metrics_address: 0.0.0.0 is not this machine's loopback"),
        ):
            with server_process(tiny_model, "--engine=fake", f"--metrics_address={given}") as second:
                status, _, errors = second.finish()
            assert status == 1
            assert errors.splitlines()[-1].startswith(line)
        first.terminate()
        assert first.finish()[0] == 0


def engine_of(server: ServerProcess) -> int:
    """The engine process's number."""
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    (found,) = [pid for pid in children if b"serving.engine.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def test_metrics_outlive_the_engine(slow: ServerProcess) -> None:
    address = slow.address_of("metrics")
    load(slow.address, 5, tokens=4)
    assert value(families(address), "exegpt_engine_up") == 1
    first = engine_of(slow)
    os.kill(first, signal.SIGKILL)
    until(lambda: value(families(address), "exegpt_engine_up") == 0)
    # What the front end has counted stands.
    assert value(families(address), "exegpt_requests_total", outcome="length") == 5
    until(lambda: value(families(address), "exegpt_engine_up") == 1)
    assert engine_of(slow) != first
    load(slow.address, 5, tokens=4)
    assert value(families(address), "exegpt_requests_total", outcome="length") == 10
