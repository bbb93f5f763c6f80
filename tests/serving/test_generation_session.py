"""GenerateStream: many requests over one call get the answers, refusals and ends that calls of their own would."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving.client import AsyncClient, Client, Reply, ServerError, make_request
from serving.load import LoadRequest, run_load
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc
from tests.serving.servers import RunningServer, fake_service, running_server
from tests.serving.test_generation_door import until


@pytest.fixture(scope="module")
def slow(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server(fake_service(tiny_model, fake_step_s=0.01), max_requests=200) as running:
        yield running


def converse(server: RunningServer, *messages: pb.GenerateStreamRequest) -> list[pb.GenerateStreamResponse]:
    with grpc.insecure_channel(server.address) as channel:
        return list(pb_grpc.GenerationStub(channel).GenerateStream(iter(messages), timeout=30))


def told(responses: list[pb.GenerateStreamResponse]) -> dict[str, list[int]]:
    """Tokens of each request."""
    found: dict[str, list[int]] = {}
    for message in responses:
        for response in message.responses:
            found.setdefault(response.id, []).extend(response.token_ids)
    return found


def test_answers_are_those_of_calls_of_their_own(server: RunningServer) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    with Client(server.address) as client:
        alone = [client.generate(prompt, max_tokens=1 + len(prompt) % 7) for prompt in prompts]

    async def together() -> list[Reply]:
        async with AsyncClient(server.address) as client, client.session() as session:
            asked = (session.generate(prompt, max_tokens=1 + len(prompt) % 7) for prompt in prompts)
            return await asyncio.gather(*asked)

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert (one.text, one.token_ids, one.finish.reason) == (other.text, other.token_ids, other.finish.reason)


def test_one_message_carries_a_phase_of_all_requests(slow: RunningServer) -> None:
    asked = [make_request("a", f"r{number}", max_tokens=50, ignore_eos=True) for number in range(16)]
    responses = converse(slow, pb.GenerateStreamRequest(requests=asked))
    assert {name: len(ids) for name, ids in told(responses).items()} == {f"r{number}": 50 for number in range(16)}
    # As many calls get a message each in every phase.
    assert len(responses) < sum(len(message.responses) for message in responses) / 4
    for message in responses:
        assert len({response.id for response in message.responses}) == len(message.responses)


def test_faults_are_told_in_band_and_the_others_go_on(server: RunningServer) -> None:
    bad = [
        make_request("a", "no spaces"),
        make_request("a"),
        make_request("a", "bad", temperature=3.0),
        make_request("a", "good", max_tokens=30, ignore_eos=True),
        make_request("b", "good"),
        pb.GenerateRequest(id="late", text="a", timeout_s=0),
    ]
    responses = converse(server, pb.GenerateStreamRequest(requests=bad))
    errors = [(error.id, error.code, error.message) for message in responses for error in message.errors]
    assert errors == [
        ("no spaces", 3, "id: is not 1 to 128 letters, digits or ._:-"),
        ("", 3, "id: is not 1 to 128 letters, digits or ._:-"),
        ("bad", 3, "temperature: 3.0 is not a number in [0, 2]"),
        ("good", 3, "id: is under way on this call; choose another"),
        ("late", 3, "timeout_s: 0.0 is not a number above 0"),
    ]
    assert {name: len(ids) for name, ids in told(responses).items()} == {"good": 30}


def test_too_many_are_refused_with_a_time_and_time_outs_free_rows(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, fake_step_s=0.02), max_requests=3) as small:
        asked = [make_request("x", f"r{number}", max_tokens=100, ignore_eos=True) for number in range(4)]
        asked[0].timeout_s = 0.3
        responses = converse(small, pb.GenerateStreamRequest(requests=asked))
        errors = {error.id: error for message in responses for error in message.errors}
        assert errors.keys() == {"r0", "r3"}
        assert (errors["r3"].code, errors["r3"].retry_after_s) == (14, 0.5)
        assert (errors["r0"].code, errors["r0"].HasField("retry_after_s")) == (4, False)
        lengths = {name: len(ids) for name, ids in told(responses).items()}
        assert (lengths["r1"], lengths["r2"]) == (100, 100)
        until(lambda: small.frontend.admitted == 0 and small.runner.stats().running == 0)


def test_cancelled_requests_are_told_of_no_more(slow: RunningServer) -> None:
    asked = [make_request("a", f"r{number}", max_tokens=200, ignore_eos=True) for number in range(8)]
    gone = pb.GenerateStreamRequest(cancel_ids=["r0", "r1", "r2", "unknown"])
    begin_s = time.monotonic()
    responses = converse(slow, pb.GenerateStreamRequest(requests=asked), gone)
    found = told(responses)
    assert {name for name, ids in found.items() if len(ids) == 200} == {f"r{number}" for number in range(3, 8)}
    assert not [error for message in responses for error in message.errors]
    assert time.monotonic() - begin_s < 20
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)


def test_leaving_a_session_frees_all_it_asked(slow: RunningServer) -> None:
    async def leave() -> None:
        async with AsyncClient(slow.address) as client, client.session() as session:
            streams = [session.stream("x", max_tokens=200, ignore_eos=True) for _ in range(20)]
            await asyncio.gather(*(anext(stream) for stream in streams))
            assert slow.frontend.admitted == 20
            await streams[0].aclose()
            with pytest.raises(ValueError, match="'mine' is under way"):
                await asyncio.gather(*(session.generate("x", request_id="mine") for _ in range(2)))
        with pytest.raises(ServerError, match="CANCELLED"):
            [chunk async for chunk in streams[1]]
        with pytest.raises(ServerError, match="CANCELLED"):
            await session.generate("x")

    asyncio.run(leave())
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)


def test_a_bad_message_ends_the_call(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/exegpt.v1.Generation/GenerateStream")(iter([b"\xff\xff"]), timeout=20)
        with pytest.raises(grpc.RpcError, match="request: the bytes are no message"):
            list(call)


def test_a_message_of_nothing_but_faults_holds_nobody_up(server: RunningServer) -> None:
    """A million of them are two megabytes: they are read as their refusals are, and others have their turn."""
    bad = [pb.GenerateRequest()] * 3000 + [pb.GenerateRequest(id="x" * 5000)]
    responses = converse(server, pb.GenerateStreamRequest(requests=bad))
    errors = [list(message.errors) for message in responses]
    assert sum(map(len, errors)) == len(bad)
    assert max(map(len, errors)) <= 256
    assert max(len(error.id) for each in errors for error in each) == 128
    assert {error.code for each in errors for error in each} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}


def test_drain_ends_an_idle_session_and_lets_a_busy_one_finish(tiny_model: Path) -> None:
    async def talk(server: RunningServer) -> None:
        async with AsyncClient(server.address) as client, client.session() as session, client.session() as idle:
            stream = session.stream("x", max_tokens=40, ignore_eos=True)
            first = await anext(stream)
            assert await idle.generate("x", max_tokens=1)
            await asyncio.to_thread(server.drain)
            with pytest.raises(ServerError, match=r"UNAVAILABLE: the server is stopping"):
                await session.generate("late")
            rest = [chunk async for chunk in stream]
            assert len(first.token_ids) + sum(len(chunk.token_ids) for chunk in rest) == 40
            with pytest.raises(ServerError, match=r"UNAVAILABLE: the server is stopping"):
                await idle.generate("late")
            with pytest.raises(grpc.aio.AioRpcError, match="the server is stopping"):
                async with grpc.aio.insecure_channel(server.address) as channel:
                    await pb_grpc.GenerationStub(channel).GenerateStream(timeout=20).read()

    with running_server(fake_service(tiny_model, fake_step_s=0.02)) as server:
        asyncio.run(talk(server))


def test_a_load_over_one_call_leaves_nothing_behind(slow: RunningServer) -> None:
    rng = random.Random(0)
    asked = [LoadRequest(f"p{number}", {"max_tokens": rng.randint(1, 30), "ignore_eos": True}) for number in range(150)]
    results = run_load(slow.address, asked, concurrency=64, timeout_s=60, one_call=True)
    assert [result.error for result in results] == [None] * 150
    assert [len(result.token_ids) for result in results] == [request.parameters["max_tokens"] for request in asked]
    assert all(result.encode_to_last_s > 0 for result in results)
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().live_bytes == 0)
