"""exegpt.v1.Generation over a real channel: answers, refusals, cancel, deadline, and what a client may never see."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from serving.client import Client, ServerError, make_request
from serving.doors.generation import SERVICE_NAME
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc
from tests.serving.servers import RunningServer, fake_service, running_server

CLIENT_FAULTS = {"INVALID_ARGUMENT", "OK"}


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> grpc.Channel:
    return grpc.insecure_channel(server.address)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Client:
    return Client(server.address)


def until(condition: object, timeout_s: float = 10) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "still not so"
        time.sleep(0.01)


def test_an_answer_streams_and_adds_up(server: RunningServer, client: Client) -> None:
    chunks = list(client.stream("hello", max_tokens=40, ignore_eos=True))
    assert len(chunks) > 1
    assert [chunk.finish is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    finish = chunks[-1].finish
    assert finish is not None
    assert finish.reason == "length"
    assert finish.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) == 40
    assert finish.prompt_tokens > 0
    assert 0 <= finish.encode_start_s <= finish.first_token_s <= finish.last_token_s
    tokenizer = server.text.tokenizer
    assert "".join(chunk.text for chunk in chunks) == tokenizer.decode([t for chunk in chunks for t in chunk.token_ids])


def test_text_and_its_token_ids_are_the_same_prompt(server: RunningServer, client: Client) -> None:
    ids = server.text.tokenizer.encode("hello")
    text, tokens = client.generate("hello", max_tokens=9), client.generate(ids, max_tokens=9)
    assert text.token_ids == tokens.token_ids
    assert client.generate([{"role": "user", "content": "hello"}], max_tokens=9).finish.prompt_tokens > len(ids)


def test_a_stop_string_ends_text_and_tokens(client: Client) -> None:
    for prompt in map(str, range(50)):
        whole = client.generate(prompt, max_tokens=60, ignore_eos=True)
        # Two whole characters, not right at the beginning.
        if found := re.search(r"(?<=.{4})[^\ufffd]{2}", whole.text, re.DOTALL):
            break
    stop = found[0]
    cut = client.generate(prompt, max_tokens=60, ignore_eos=True, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert (cut.finish.reason, cut.finish.stop_reason) == ("stop", stop)
    assert cut.finish.completion_tokens == len(cut.token_ids)


def test_a_stop_token_is_named(client: Client) -> None:
    whole = client.generate("stop here", max_tokens=20, ignore_eos=True)
    token = whole.token_ids[7]
    cut = client.generate("stop here", max_tokens=20, ignore_eos=True, stop_token_ids=[token])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert (cut.finish.reason, cut.finish.stop_reason) == ("stop", token)


def test_seed_is_returned_and_the_id_echoed(channel: grpc.Channel) -> None:
    request = make_request("x", "my-request", max_tokens=2, seed=-7)
    call = pb_grpc.GenerationStub(channel).Generate(request)
    responses = list(call)
    assert {response.id for response in responses} == {"my-request"}
    assert responses[-1].finish.seed == -7
    assert dict(call.trailing_metadata())["x-request-id"] == "my-request"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.GenerateRequest(), "prompt: give exactly one of prompt and messages"),
        (make_request([]), "prompt: has 0 tokens"),
        (make_request([5, 400]), "prompt[1]: 400 is no token id in [0, 319]"),
        (make_request("a" * 3000), "prompt: has 3"),
        (make_request([1] * 200), "prompt: has 200 tokens; 1 to 128 fit"),
        (make_request("a", max_tokens=5000), "max_tokens: 5000 exceeds the "),
        (make_request("a", temperature=float("nan")), "temperature: nan is not a number in [0, 2]"),
        (make_request("a", top_p=0.0), "top_p: 0.0 is not a number in (0, 1]"),
        (make_request("a", logprobs=21), "logprobs: 21 is not"),
        (make_request("a", "no spaces"), "id: is not 1 to 128"),
        (make_request([{"role": "wizard", "content": "a"}]), "messages: the model's chat template refuses them"),
        (make_request([{"role": "", "content": "a"}]), "messages[0].role: missing"),
    ],
)
def test_bad_input_is_named(channel: grpc.Channel, request_: pb.GenerateRequest, message: str) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        list(pb_grpc.GenerationStub(channel).Generate(request_))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details().startswith(message)
    assert "\n" not in refusal.value.details()


NUMBERS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 0.5, 1.0, 2.0, -2.0, 100.0]))
COUNTS = st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(0, 40))


@given(
    prompt=st.one_of(st.text(max_size=20), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.just([3])),
    reals=st.dictionaries(
        st.sampled_from(
            ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
        ),
        NUMBERS,
        max_size=3,
    ),
    counts=st.dictionaries(st.sampled_from(["max_tokens", "min_tokens", "logprobs", "n"]), COUNTS, max_size=3),
    stop=st.lists(st.text(max_size=3), max_size=5),
    ids=st.lists(st.integers(0, 400), max_size=20),
    bias=st.dictionaries(st.integers(0, 400), st.floats(), max_size=3),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
)
def test_no_input_is_the_servers_fault(
    client: Client,
    prompt: str | list[int],
    reals: dict[str, float | None],
    counts: dict[str, int | None],
    stop: list[str],
    ids: list[int],
    bias: dict[int, float],
    seed: int | None,
) -> None:
    given_ = {**reals, **counts, "stop": stop, "stop_token_ids": ids, "logit_bias": bias, "seed": seed}
    code = "OK"
    try:
        client.generate(prompt, timeout_s=20, **{k: v for k, v in given_.items() if v is not None})
    except ServerError as error:
        code = error.code
    assert code in CLIENT_FAULTS


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_invalid(channel: grpc.Channel, data: bytes) -> None:
    call = channel.unary_stream("/exegpt.v1.Generation/Generate")(data, timeout=20)
    code = grpc.StatusCode.OK
    try:
        list(call)
    except grpc.RpcError as error:
        code = error.code()
    assert code.name in CLIENT_FAULTS
    with pytest.raises(grpc.RpcError, match="request: the bytes are no message"):
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff")
    reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError, match="request: the bytes are no message"):
        list(reflect(iter([b"\xff\xff"])))


def test_leaving_early_frees_the_request(server: RunningServer, client: Client) -> None:
    stream = client.stream("leave", max_tokens=200, ignore_eos=True)
    next(stream)
    assert server.frontend.admitted == 1
    stream.close()
    until(lambda: server.frontend.admitted == 0)
    until(lambda: server.runner.stats().running == 0)


def test_a_deadline_ends_the_request(server: RunningServer, tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, fake_step_s=0.02)) as slow, Client(slow.address) as client:
        begin_s = time.monotonic()
        with pytest.raises(ServerError) as refusal:
            client.generate("late", max_tokens=200, ignore_eos=True, timeout_s=0.3)
        assert refusal.value.code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - begin_s < 2
        until(lambda: slow.frontend.admitted == 0)
        until(lambda: slow.runner.stats().running == 0)


def test_before_warm_up_and_in_drain_it_is_unavailable_with_a_pushback(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, fake_step_s=0.001), warm=False) as cold:
        stub = pb_grpc.GenerationStub(grpc.insecure_channel(cold.address))
        for word in ("warming up", "stopping"):
            with pytest.raises(grpc.RpcError) as refusal:
                list(stub.Generate(make_request("x")))
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert word in refusal.value.details()
            assert int(dict(refusal.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
            assert cold.drain()


def test_more_than_max_requests_are_refused_and_the_rest_goes_on(tiny_model: Path) -> None:
    with (
        running_server(fake_service(tiny_model, fake_step_s=0.005), max_requests=3) as small,
        Client(small.address, retries=False) as client,
    ):
        streams = [client.stream("x", max_tokens=100, ignore_eos=True) for _ in range(3)]
        for stream in streams:
            next(stream)
        with pytest.raises(ServerError, match="3 requests are waiting or running") as refusal:
            client.generate("x")
        assert refusal.value.code == "UNAVAILABLE"
        assert all(list(stream)[-1].finish.completion_tokens == 100 for stream in streams)


def test_the_client_tries_again_when_the_server_says(tiny_model: Path) -> None:
    with (
        running_server(fake_service(tiny_model), warm=False) as cold,
        Client(cold.address) as patient,
        Client(cold.address, retries=False) as impatient,
    ):
        with pytest.raises(ServerError, match="warming up"):
            impatient.generate("x", max_tokens=1)
        opener = threading.Timer(0.5, lambda: cold.call(cold.frontend.open, cold.text, cold.runner))
        opener.start()
        assert len(patient.generate("x", max_tokens=3, ignore_eos=True).token_ids) == 3
        opener.join()


def test_a_bug_is_opaque(server: RunningServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fields: object, deadline_s: object) -> object:
        raise KeyError("/secret/path")

    monkeypatch.setattr(server.frontend, "stream", broken)
    with pytest.raises(ServerError, match=r"INTERNAL: internal error [0-9a-f]{12}; ") as refusal:
        client.generate("x")
    assert "secret" not in str(refusal.value)


def test_health_follows_readiness(server: RunningServer, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    status = health_pb2.HealthCheckResponse
    for name in ("", SERVICE_NAME):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == status.SERVING
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Check(health_pb2.HealthCheckRequest(service="else"))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    first, second = (stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME)) for _ in range(2))
    assert [next(first).status, next(second).status] == [status.SERVING] * 2
    assert next(stub.Watch(health_pb2.HealthCheckRequest(service="else"))).status == status.SERVICE_UNKNOWN
    second.cancel()
    server.call(server.states.set_serving, False)
    assert next(first).status == status.NOT_SERVING
    assert stub.Check(health_pb2.HealthCheckRequest(service="liveness")).status == status.SERVING
    server.call(server.states.set_serving, True)
    assert next(first).status == status.SERVING
    first.cancel()


def test_reflection_lists_and_describes(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE_NAME),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
    (file,) = described.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(file).name == "exegpt/v1/generation.proto"
