"""smg in front gives the OpenAI HTTP API: the official client, unchanged, gets what this server's own client gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exegpt_jax.testing import numbers_task as task
from serving.client import Client
from tests.serving.clients import foreign, gateway

MESSAGES = [{"role": "user", "content": "hello"}]
NUMBERS = (4217, 38, 271_828_182, 7)
SIZES = (
    *("--max_rows=4", "--encode_batch=4", "--decode_batch=4", "--decode_iterations=3"),
    *("--cache_tokens=32", "--max_prompt_tokens=15"),
)


@pytest.fixture(scope="module")
def fake(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The HTTP API before the fake engine, and the engine's own address."""
    scratch = tmp_path_factory.mktemp("stubs")
    with (
        gateway.engine(tiny_model, scratch, "--engine=fake", "--fake_step_s=0.005", "--max_rows=8") as server,
        gateway.gateway(server.address, scratch / "smg.log") as url,
    ):
        yield url, server.address


@pytest.fixture(scope="module")
def numbers(numbers_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same before the embedded model, which gets a chat template of its own: the last message is the prompt."""
    scratch = tmp_path_factory.mktemp("stubs")
    model = tmp_path_factory.mktemp("models") / "numbers"
    shutil.copytree(numbers_model, model)
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    programs = f"--compilation_cache={scratch / 'programs'}"
    with (
        gateway.engine(model, scratch, *SIZES, programs) as server,
        gateway.gateway(server.address, scratch / "smg.log") as url,
    ):
        yield url


def call(case: str, url: str, given: object = None) -> Any:
    return foreign.run("openai_calls.py", case, url, json.dumps(given))


def ask(number: int, **parameters: object) -> dict[str, Any]:
    """Of the embedded model, as a chat."""
    messages = [{"role": "user", "content": task.prompt(number)}]
    return {"model": "numbers", "messages": messages, "max_completion_tokens": 17, **parameters}


def test_chat_follows_the_models_own_template(fake: tuple[str, str], tiny_model: Path) -> None:
    url, address = fake
    assert call("models", url) == [tiny_model.name]
    found = call("chat", url, {"model": tiny_model.name, "messages": MESSAGES, "max_completion_tokens": 20})
    with Client(address) as client:
        reply = client.generate(MESSAGES, max_tokens=20)
    (choice,) = found["choices"]
    # smg leaves out a character at the end that is not whole.
    assert choice["message"]["content"] == reply.text.rstrip("\ufffd")
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == reply.finish.reason
    usage = found["usage"]
    assert usage["prompt_tokens"] == reply.finish.prompt_tokens
    assert usage["completion_tokens"] == reply.finish.completion_tokens
    assert usage["total_tokens"] == reply.finish.prompt_tokens + reply.finish.completion_tokens


def test_a_stream_adds_up_to_the_answer(fake: tuple[str, str], tiny_model: Path) -> None:
    url, _ = fake
    given = {"model": tiny_model.name, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    options = {"stream_options": {"include_usage": True}}
    whole = call("chat", url, {**given, "messages": MESSAGES})
    *chunks, last = call("chat_stream", url, {**given, **options, "messages": MESSAGES})
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert len(deltas) > 3
    text = "".join(delta["delta"]["content"] or "" for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 40)
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    completed = call("completion", url, {**given, "prompt": "hello"})
    *chunks, last = call("completion_stream", url, {**given, **options, "prompt": "hello"})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == completed["choices"][0]["text"]
    assert last["usage"]["total_tokens"] == completed["usage"]["total_tokens"]


def test_n_answers_of_a_chat(fake: tuple[str, str], tiny_model: Path) -> None:
    given = {"model": tiny_model.name, "messages": MESSAGES, "max_tokens": 5, "temperature": 1, "n": 3}
    found = call("chat", fake[0], {**given, "extra_body": {"ignore_eos": True}})
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == 15


def test_whoever_leaves_frees_the_row(fake: tuple[str, str], tiny_model: Path) -> None:
    url, address = fake
    given = {"model": tiny_model.name, "prompt": "hello", "max_tokens": 240, "extra_body": {"ignore_eos": True}}
    assert call("leave", url, given)["choices"][0]["text"]
    assert foreign.run("engine_calls.py", "left", address) == 0


def test_what_is_wrong_reaches_the_client_by_name(fake: tuple[str, str], tiny_model: Path) -> None:
    url, _ = fake
    given = {"model": tiny_model.name, "messages": MESSAGES, "max_completion_tokens": 5}
    cases = [
        (["chat", {**given, "max_completion_tokens": 4000}], 400, "max_tokens: 4000 exceeds"),
        (["chat", {**given, "n": 3}], 400, "n: 3 answers without sampling are all the same"),
        (["chat", {**given, "response_format": {"type": "json_object"}}], 400, "json_schema: is not supported"),
        (["chat", {**given, "messages": [{"role": "system", "content": "x"}]}], 400, "roles are user and assistant"),
        (["completion", {"model": tiny_model.name, "prompt": "a" * 3000}], 400, "maximum context length is 256"),
        (["embedding", {"model": tiny_model.name, "input": "a"}], 501, "does not have the method"),
        (["chat", {**given, "model": "another"}], 404, "another"),
    ]
    refusals = call("refuse", url, [case for case, _, _ in cases])
    for (_, status, line), (found, message) in zip(cases, refusals, strict=True):
        assert found == status, message
        assert line in message


def test_the_embedded_model_answers(numbers: str) -> None:
    """Right answers, many at once; smg leaves out what a tokenizer puts before a prompt, so a completion writes it."""
    given = [
        {"model": "numbers", "prompt": f"<s>{task.prompt(number)}", "max_tokens": 17, "temperature": 0}
        for number in NUMBERS
    ]
    found = call("completions_at_once", numbers, given)
    assert [each["choices"][0]["text"].strip() for each in found] == [task.words(number) for number in NUMBERS]
    assert {each["choices"][0]["finish_reason"] for each in found} == {"stop"}
    reply = call("chat", numbers, ask(4217))
    assert reply["choices"][0]["message"]["content"].strip() == task.words(4217)
    assert reply["usage"]["completion_tokens"] == len(task.words(4217).split()) + 1


def test_stop_and_logprobs_of_the_embedded_model(numbers: str) -> None:
    stopped = call("chat", numbers, ask(123_456_789, stop=[" million"]))["choices"][0]
    assert stopped["message"]["content"].strip() == "one hundred twenty three"
    assert stopped["finish_reason"] == "stop"
    scored = call("chat", numbers, ask(4217, logprobs=True, top_logprobs=2))["choices"][0]
    entries = scored["logprobs"]["content"]
    assert [entry["token"].strip() for entry in entries] == task.words(4217).split()
    for entry in entries:
        best, second = entry["top_logprobs"]
        assert (best["token"], best["logprob"]) == (entry["token"], entry["logprob"])
        assert second["logprob"] <= best["logprob"] <= 0


def test_seed_and_n_of_the_embedded_model(numbers: str) -> None:
    def texts(**parameters: object) -> list[str]:
        # Without what stands before its prompts the model is unsure, so that sampling has something to choose from.
        given = {"model": "numbers", "prompt": task.prompt(4217), "max_tokens": 17, "temperature": 2, **parameters}
        choices = call("completion", numbers, given)["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        return [choice["text"] for choice in choices]

    three = texts(seed=1, n=3)
    assert len(set(three)) == 3
    assert texts(seed=1, n=3) == three
    assert texts(seed=2, n=1) == three[1:2]
    assert texts(seed=77) != texts(seed=78)
