"""Messages that nobody would send, to every method of every door: each has a status of its own fault and an opaque
line, and the server answers as before."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hypothesis
import pytest
from google.protobuf.message import Message
from hypothesis import strategies

from serving.client import Client
from tests.serving.clients import foreign, gateway
from tests.serving.fuzzing import doors
from tests.serving.fuzzing.caller import Caller
from tests.serving.fuzzing.random_messages import any_of, damaged, scrambled
from tests.serving.open_inference import ask
from tests.serving.servers import ServerProcess, faults, server_process

INPUTS, QUICK_S = 1_000_000, 8.0
TASKS = 8
FLAGS = ("--engine=fake", "--max_rows=32")
# It ends the server, as it should.
LEFT_OUT = ("/exegpt.v1.Admin/Drain",)


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing") / "admin"


@pytest.fixture(scope="module")
def server(tiny_model: Path, socket: Path) -> Iterator[ServerProcess]:
    """With the door of VllmEngine where its stubs are."""
    flags = (*FLAGS, f"--admin_socket={socket}")
    has_stubs = foreign.what_is_missing() is None
    made = gateway.engine(tiny_model, socket.parent, *flags) if has_stubs else server_process(tiny_model, *flags)
    with made as running:
        yield running
        running.terminate()
        status, out, err = running.finish()
        assert (status, out.splitlines()[-1]) == (0, "stopped")
        # A line there explains an INTERNAL, so there is none of them.
        assert faults(err) == []


def examples(method: doors.Method, model: str) -> list[Message]:
    """Requests that would be answered, to begin with."""
    found: list[Message] = [method.request()]

    def like(**fields: Any) -> None:
        found.append(method.request(**fields))

    match method.path.rpartition("/")[2]:
        case "Generate" if "exegpt" in method.path:
            for prompt in ({"text": "x"}, {"token_ids": {"ids": [1, 2]}}):
                like(id="a", parameters={"max_tokens": 3, "logprobs": 1, "stop": ["e"]}, **prompt)
            like(chat={"messages": [{"role": "user", "content": "x"}]}, parameters={"max_tokens": 2})
        case "Generate":
            like(tokenized={"input_ids": [1, 2]}, sampling_params={"max_tokens": 3}, stream=True)
            like(text="x", sampling_params={"max_tokens": 3, "n": 2, "temperature": 1.0})
        case "GenerateStream":
            like(requests=[{"id": f"{n}", "text": "x", "parameters": {"max_tokens": 2}} for n in range(5)])
        case "ModelInfer" | "ModelStreamInfer":
            asked = (
                ask(model, "a", text_input="x", max_tokens=3, stream=False, sampling_parameters={"temperature": 0.5}),
                ask(f"{model}_tokens", input_ids=[1, 2], request_output_len=3),
            )
            found += [method.request.FromString(each.SerializeToString()) for each in asked]
        case "ModelReady" | "ModelMetadata" | "ModelConfig" | "ModelStatistics":
            like(name=model)
        case "ServerReflectionInfo":
            like(list_services="")
            like(file_containing_symbol="exegpt.v1.Generation")
    return found


def requests_of(rng: random.Random, found: list[Message]) -> list[bytes]:
    """Of one call, scrambled for the most part and now and then damaged."""
    messages = [scrambled(rng, any_of(rng, found)).SerializeToString() for _ in range(rng.choice([1, 2, 30]))]
    return [damaged(rng, each) if rng.random() < 0.02 else each for each in messages]


def is_well(server: ServerProcess) -> bool:
    with Client(server.address) as client:
        return client.generate("x", max_tokens=5, ignore_eos=True, timeout_s=60).finish.completion_tokens == 5


async def sent(targets: list[tuple[str, list[doors.Method]]], model: str, *, inputs: int, until_s: float) -> Caller:
    """Random calls to random methods until there are enough."""
    async with grpc.aio.insecure_channel(targets[0][0]) as first, grpc.aio.insecure_channel(targets[1][0]) as second:
        callers = [Caller(first), Caller(second)]
        numbers = itertools.count()
        known = {each.path: examples(each, model) for _, found in targets for each in found}

        async def one_after_the_other() -> None:
            while sum(caller.inputs for caller in callers) < inputs and time.monotonic() < until_s:
                rng = random.Random(next(numbers))
                # The doors for clients, for the most part, and of those what takes prompts.
                at = int(rng.random() < 0.05)
                method = rng.choice(targets[at][1])
                if not at and rng.random() < 0.7:
                    method = rng.choice(
                        [each for each in targets[0][1] if "Stream" in each.path or "Infer" in each.path]
                    )
                messages = requests_of(rng, known[method.path])
                if method.path not in LEFT_OUT:
                    await callers[at].call(method, messages)

        await asyncio.gather(*(one_after_the_other() for _ in range(TASKS)))
    callers[0].inputs += callers[1].inputs
    callers[0].codes += callers[1].codes
    callers[0].wrong += callers[1].wrong
    return callers[0]


def test_random_messages_to_every_door(server: ServerProcess, socket: Path, tiny_model: Path, full: bool) -> None:
    targets = [(target, doors.methods(target)) for target in (server.address, f"unix:{socket}")]
    until_s = float("inf") if full else time.monotonic() + QUICK_S
    caller = asyncio.run(sent(targets, tiny_model.resolve().name, inputs=INPUTS, until_s=until_s))
    print(f"{caller.inputs} inputs; {dict(caller.codes)}")
    assert caller.wrong == []
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(caller.codes)
    assert is_well(server)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(strategies.randoms(use_true_random=False))
def test_what_hypothesis_finds(server: ServerProcess, tiny_model: Path, rng: random.Random) -> None:
    """Fewer of them, but what fails is made small."""

    async def run(found: list[doors.Method]) -> list[str]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            caller = Caller(channel)
            for method in found:
                messages = [
                    scrambled(rng, any_of(rng, examples(method, tiny_model.resolve().name))).SerializeToString()
                ]
                await caller.call(method, messages)
            return caller.wrong

    assert asyncio.run(run(doors.methods(server.address))) == []
