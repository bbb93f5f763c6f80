"""The commands over the real engine: the same answers under every policy, and a server from start to drain."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exegpt_jax.testing import numbers_task as task
from serving.client import Client, ServerError
from serving.load import LoadRequest, run_load
from serving.proto.inference.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.serving.open_inference import ask, read
from tests.serving.servers import environment, exegpt, server_process

NUMBERS = (4217, 38, 271_828_182, 7, 60_012, 123_456_789, 5_005, 19, 808, 31_415)
SIZES = ("--max_rows=2", "--encode_batch=2", "--cache_tokens=32", "--max_prompt_tokens=15")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled programs that the runs share."""
    return f"--compilation_cache={tmp_path_factory.mktemp('programs')}"


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Greedy and seeded lines, some with stop strings, and a bad one."""
    path = tmp_path_factory.mktemp("requests") / "in.jsonl"
    lines: list[dict[str, object]] = [
        {"id": number, "prompt": task.prompt(number), "max_tokens": 17} for number in NUMBERS
    ]
    lines += [{**line, "id": f"s{line['id']}", "temperature": 1.5, "seed": 5} for line in lines]
    lines += [{"id": "stop", "prompt": task.prompt(123_456_789), "max_tokens": 17, "stop": " million"}]
    lines += [{"id": "bad", "prompt": task.prompt(1), "max_tokens": 500}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def generate(model: Path, source: Path, target: Path, *flags: str) -> list[dict]:
    done = subprocess.run(
        exegpt("generate", f"--model={model}", f"--input={source}", f"--output={target}", *SIZES, *flags),
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stderr.splitlines()[-1].removeprefix("GENERATE "))
    assert (counts["requests"], counts["errors"]) == (22, 1)
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_every_policy_gives_the_same_answers(
    numbers_model: Path, requests: Path, tmp_path: Path, programs: str
) -> None:
    found = {
        policy: generate(numbers_model, requests, tmp_path / policy, f"--policy={policy}", *flags, programs)
        for policy, flags in {
            "rra": ("--decode_iterations=3", "--decode_batch=2"),
            "static": ("--decode_iterations=16",),
            "iteration": (),
            "chunked": ("--token_budget=12",),
        }.items()
    }
    greedy = found["rra"][: len(NUMBERS)]
    assert [answer["text"].strip() for answer in greedy] == [task.words(number) for number in NUMBERS]
    assert found["rra"][20]["text"].strip() == "one hundred twenty three"
    assert found["rra"][20]["stop_reason"] == " million"
    assert found["rra"][21]["error"].startswith("max_tokens: 500 exceeds")
    for policy, answers in found.items():
        assert answers == found["rra"], policy


def test_serve_from_start_to_drain(numbers_model: Path, programs: str) -> None:
    with server_process(numbers_model, *SIZES, "--decode_iterations=3", "--decode_batch=2", programs) as server:
        loads = [LoadRequest(task.prompt(number), {"max_tokens": 17}) for number in NUMBERS]
        results = run_load(server.address, loads, timeout_s=60)
        with Client(server.address) as client:
            reply = client.generate(task.prompt(4217), max_tokens=3, logprobs=2)
        with grpc.insecure_channel(server.address) as channel:
            asked = ask(
                numbers_model.name,
                text_input=task.prompt(4217),
                exclude_input_in_output=True,
                sampling_parameters={"max_tokens": 17, "logprobs": 2},
                return_logprobs=True,
                return_cumulative_logprob=True,
            )
            stub = GRPCInferenceServiceStub(channel)
            told = read(stub.ModelInfer(asked, timeout=60))
            # Nothing that the model was trained on, so that it is unsure.
            sampling = {"max_tokens": 17, "temperature": 2, "seed": 1, "n": 3}
            several = ask(numbers_model.name, text_input="-> 4 -> 2", sampling_parameters=sampling)
            drawn = [read(stub.ModelInfer(several, timeout=60))["text_output"] for _ in range(2)]
        server.terminate()
        status, _, err = server.finish()
    assert [result.text.strip() for result in results] == [task.words(number) for number in NUMBERS]
    assert {result.finish_reason for result in results} == {"stop"}
    assert [entry.top[0][0] for entry in reply.logprobs] == list(reply.token_ids)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1
    assert told["text_output"].strip() == task.words(4217)
    candidates = [
        {entry["decoded_token"]: entry["rank"] for entry in each.values()} for each in json.loads(told["logprobs"])
    ]
    assert [list(each.values()) for each in candidates] == [[1, 2]] * len(candidates)
    chosen = [next(iter(each.values()))["logprob"] for each in json.loads(told["logprobs"])]
    assert told["cumulative_logprob"] == pytest.approx([sum(chosen)], rel=1e-5)
    # A token alone has lost the space in front of it.
    assert "".join(next(iter(each)) for each in candidates[:-1]) == task.words(4217).replace(" ", "")
    assert status == 0
    assert "temporary bytes" in err


def test_a_signal_during_warm_up_ends_it_with_0(numbers_model: Path) -> None:
    with server_process(numbers_model, wait_ready=False) as server:
        health = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with (
            Client(server.address) as client,
            pytest.raises(ServerError, match="UNAVAILABLE: the server is warming up"),
        ):
            client.generate("x")
        server.terminate()
        status, out, _ = server.finish()
    assert status == 0
    assert out.endswith("stopped while warming up\n")
