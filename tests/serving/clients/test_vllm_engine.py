"""vllm.grpc.engine.VllmEngine, called with the stubs that gateways use: answers, ends, refusals, what a model is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exegpt_jax.text.tokenizer import Tokenizer
from serving.client import Client
from tests.serving.clients import foreign, gateway

SERVICE_NAME = "vllm.grpc.engine.VllmEngine"
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 30, "ignore_eos": True}


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ("--engine=fake", "--fake_step_s=0.005", "--max_rows=8", "--decode_iterations=4")
    with gateway.engine(tiny_model, tmp_path_factory.mktemp("stubs"), *flags) as server:
        yield server.address


@pytest.fixture(scope="module")
def prompt_ids(tiny_model: Path) -> list[int]:
    return list(Tokenizer(tiny_model).encode("hello"))


def call(case: str, address: str, given: object = None) -> Any:
    return foreign.run("engine_calls.py", case, address, *([] if given is None else [json.dumps(given)]))


def request(prompt_ids: list[int], *, stream: bool = True, **parameters: object) -> dict[str, Any]:
    return {"tokenized": {"input_ids": prompt_ids}, "sampling_params": {**SAMPLED, **parameters}, "stream": stream}


def test_a_stream_brings_the_tokens_and_then_the_end(address: str, prompt_ids: list[int]) -> None:
    *chunks, last = call("generate", address, request(prompt_ids))
    with Client(address) as client:
        reply = client.generate(prompt_ids, max_tokens=30, ignore_eos=True)
    tokens = [token for chunk in chunks for token in chunk["chunk"]["token_ids"]]
    assert len(chunks) > 1
    assert tokens == list(reply.token_ids)
    assert all(chunk["chunk"]["completion_tokens"] == len(chunk["chunk"]["token_ids"]) for chunk in chunks)
    assert all(chunk["chunk"]["prompt_tokens"] == len(prompt_ids) for chunk in chunks)
    assert last["complete"] | {"output_ids": []} == {
        "index": 0,
        "output_ids": [],
        "finish_reason": "length",
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": 30,
        "cached_tokens": 0,
        "spec_accepted_tokens": 0,
        "spec_draft_tokens": 0,
    }


def test_without_stream_there_is_the_end_alone(address: str, prompt_ids: list[int]) -> None:
    (last,) = call("generate", address, request(prompt_ids, stream=False))
    with Client(address) as client:
        reply = client.generate(prompt_ids, max_tokens=30, ignore_eos=True)
    assert last["complete"]["output_ids"] == list(reply.token_ids)
    (text,) = call("generate", address, {"text": "hello", "sampling_params": SAMPLED})
    assert text["complete"]["output_ids"] == list(reply.token_ids)


def test_what_stopped_an_answer_is_named(address: str, prompt_ids: list[int], tiny_model: Path) -> None:
    (whole,) = call("generate", address, request(prompt_ids, stream=False))
    tokens = whole["complete"]["output_ids"]
    stop_id = tokens[4]
    (by_id,) = call("generate", address, request(prompt_ids, stream=False, stop_token_ids=[stop_id]))
    assert by_id["complete"]["output_ids"] == tokens[: tokens.index(stop_id) + 1]
    assert (by_id["complete"]["finish_reason"], by_id["complete"]["matched_token_id"]) == ("stop", stop_id)
    # A character that the answer holds somewhere, and that came with one token.
    tokenizer = Tokenizer(tiny_model)
    place, text = next(
        (place, text)
        for place, token in enumerate(tokens)
        if (text := tokenizer.decode([token])).isprintable() and "\ufffd" not in text and text
    )
    (by_text,) = call("generate", address, request(prompt_ids, stream=False, stop=[text]))
    assert by_text["complete"]["output_ids"] == tokens[: place + 1]
    assert (by_text["complete"]["finish_reason"], by_text["complete"]["matched_stop_str"]) == ("stop", text)


def test_the_models_own_end_is_not_named(address: str, tiny_model: Path) -> None:
    """The fake engine's arithmetic makes the end of sequence of some prompts soon."""
    end = json.loads((tiny_model / "generation_config.json").read_text())["eos_token_id"]
    # next = 31 x sum + 7 x count + 1 modulo 320: one token t is followed by the end where 31 t + 8 = end.
    token = next(token for token in range(320) if (31 * token + 8) % 320 == end)
    parameters = {"temperature": 0.0, "max_tokens": 30}
    (last,) = call("generate", address, {"tokenized": {"input_ids": [token]}, "sampling_params": parameters})
    assert last["complete"]["output_ids"] == [end]
    assert last["complete"]["finish_reason"] == "stop"
    assert "matched_token_id" not in last["complete"]


def test_n_answers_are_told_apart(address: str, prompt_ids: list[int]) -> None:
    messages = call("generate", address, request(prompt_ids, n=3, seed=7))
    ends = [message["complete"] for message in messages if "complete" in message]
    assert sorted(end["index"] for end in ends) == [0, 1, 2]
    assert [end["completion_tokens"] for end in ends] == [30] * 3
    for index in range(3):
        chunks = [m["chunk"] for m in messages if "chunk" in m and m["chunk"]["index"] == index]
        assert sum(len(chunk["token_ids"]) for chunk in chunks) == 30


def test_an_aborted_request_ends_and_frees_its_rows(address: str, prompt_ids: list[int]) -> None:
    found = call("abort", address, {**request(prompt_ids, max_tokens=240, n=2), "request_id": "chatcmpl-1"})
    assert found["taken"] == [["INVALID_ARGUMENT", "request_id: is under way; choose another"]]
    assert found["running"] == 2
    assert sorted((end["index"], end["finish_reason"]) for end in found["ends"]) == [(0, "abort"), (1, "abort")]
    assert found["left"] == 0
    assert call("leave", address, request(prompt_ids, max_tokens=240, n=2))["left"] == 0


def test_what_cannot_be_done_is_refused_by_name(address: str, prompt_ids: list[int]) -> None:
    cases = {
        "n: 9 is not an integer in [1, 8]": request(prompt_ids, n=9),
        "n: 2 answers without sampling are all the same": request(prompt_ids, n=2, temperature=0.0),
        "json_schema: is not supported": request(prompt_ids, json_schema="{}"),
        "choice: is not supported": request(prompt_ids, choice={"choices": ["a"]}),
        "prompt_logprobs: is not supported": request(prompt_ids, prompt_logprobs=0),
        "logprobs: -1 is not an integer in [0, 20]": request(prompt_ids, logprobs=-1),
        "temperature: nan is not a number in [0, 2]": request(prompt_ids, temperature="NaN"),
        "max_tokens: 500 exceeds": request(prompt_ids, max_tokens=500),
        "prompt[0]: 400 is no token id": request([400]),
        "prompt: has 0 tokens": request([]),
        "prompt: give exactly one": {"sampling_params": SAMPLED},
        "request_id: is not 1 to 128": {**request(prompt_ids), "request_id": "a b"},
        "data_parallel_rank: 1": {**request(prompt_ids), "data_parallel_rank": 1},
        "mm_inputs: is not supported": {**request(prompt_ids), "mm_inputs": {"im_token_id": 3}},
        "kv_transfer_params_json: is not supported": {**request(prompt_ids), "kv_transfer_params_json": "{}"},
    }
    refusals = call("refuse", address, list(cases.values()))
    for line, (code, details) in zip(cases, refusals, strict=True):
        assert (code, details[: len(line)]) == ("INVALID_ARGUMENT", line)
        assert "\n" not in details


def test_zero_stands_for_absent(address: str, prompt_ids: list[int]) -> None:
    """As a client leaves it that sets nothing but the tokens: every number of the message is 0."""
    bare = {"tokenized": {"input_ids": prompt_ids}, "sampling_params": {"max_tokens": 3, "ignore_eos": True}}
    (last,) = call("generate", address, bare)
    assert last["complete"]["completion_tokens"] == 3


def test_a_gateway_learns_what_it_needs(address: str, tiny_model: Path) -> None:
    found = call("look", address)
    assert found["health"] == {"healthy": True, "message": "serving"}
    model, server, (load,) = found["model"], found["server"], found["loads"]["loads"]
    assert model["served_model_name"] == tiny_model.name
    assert model["tokenizer_path"] == str(tiny_model)
    assert (model["vocab_size"], model["max_context_length"], model["max_req_input_len"]) == (320, 256, 128)
    assert (model["eos_token_ids"], model["architectures"]) == ([1], ["LlamaForCausalLM"])
    assert json.loads(model["default_sampling_params_json"]) == {"temperature": 0.0}
    assert (server["max_num_seqs"], server["data_parallel_size"], server["is_paused"]) == (8, 1, False)
    assert (load["num_running_reqs"], load["max_running_requests"], load["max_total_num_tokens"]) == (0, 8, 8 * 256)
    status = health_pb2_grpc.HealthStub(grpc.insecure_channel(address))
    answer = status.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_tokenizer_travels(address: str, tiny_model: Path) -> None:
    found = call("fetch_tokenizer", address)
    assert found["digest_holds"]
    assert set(found["files"]) == {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"}
    assert all(text == (tiny_model / name).read_text() for name, text in found["files"].items())


def test_the_rest_is_unimplemented(address: str) -> None:
    assert call("missing", address) == ["UNIMPLEMENTED"] * 5
