"""ModelStreamInfer: many requests over one call, their ends, and what a client that leaves gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from exegpt_jax.testing.fake import next_token
from serving.doors.open_inference.models import Models
from serving.doors.open_inference.statistics import Statistics
from serving.doors.open_inference.stream import Stream
from serving.frontend import Frontend
from serving.proto.inference import inference_pb2 as pb
from serving.proto.inference import inference_pb2_grpc as pb_grpc
from tests.serving.open_inference import STRICT, ask, converse, is_final, read
from tests.serving.servers import VOCABULARY, RunningServer, fake_service, running_server
from tests.serving.test_generation_door import until


@pytest.fixture(scope="module")
def slow(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server(fake_service(tiny_model, fake_step_s=0.01), max_requests=100) as running:
        yield running


def test_a_stream_adds_up(server: RunningServer) -> None:
    options = {"max_tokens": 60, "sampling_parameters": {"ignore_eos": True}, "exclude_input_in_output": True}
    returned = dict.fromkeys(("return_finish_reason", "return_num_output_tokens", "return_num_input_tokens"), True)
    (only,) = converse(server, ask(text_input="hello", **options, **returned))
    whole = read(only.infer_response)
    responses = converse(server, ask(id="mine", text_input="hello", stream=True, **options, **returned))
    assert all(response.error_message == "" for response in responses)
    pieces = [response.infer_response for response in responses]
    assert len(pieces) > 2
    assert {piece.id for piece in pieces} == {"mine"}
    assert [is_final(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    said = [read(piece) for piece in pieces]
    assert "".join(piece["text_output"] for piece in said) == whole["text_output"]
    assert [piece["finish_reason"] for piece in said] == ["None"] * (len(said) - 1) + ["length"]
    assert sum(piece["num_output_tokens"][0] for piece in said) == 60
    assert {piece["num_input_tokens"][0] for piece in said} == set(whole["num_input_tokens"])


def test_many_requests_share_a_stream(slow: RunningServer) -> None:
    """Each is told of under its id, mixed with the others; those that are asked whole come whole."""
    asked = [
        ask("model_tokens", f"r{number}", input_ids=[number + 1] * 3, request_output_len=40, stream=number % 4 > 0)
        for number in range(32)
    ]
    for request in asked:
        request.parameters["ignore_eos"].bool_param = True
    responses = [response.infer_response for response in converse(slow, *asked)]
    for number in range(32):
        mine = [response for response in responses if response.id == f"r{number}"]
        assert [is_final(response) for response in mine] == [False] * (len(mine) - 1) + [True]
        assert (len(mine) > 1) == (number % 4 > 0)
        tokens = [number + 1] * 3
        for response in mine:
            for token in read(response)["output_ids"]:
                assert token == next_token(tokens, VOCABULARY)
                tokens.append(token)
        assert len(tokens) == 43
    assert [response.id for response in responses] != sorted(response.id for response in responses)


def test_n_answers_come_side_by_side(slow: RunningServer) -> None:
    options = {"sampling_parameters": {"n": 3, "temperature": 1, "ignore_eos": True}, "exclude_input_in_output": True}
    returned = {"return_finish_reason": True, "return_num_output_tokens": True, "return_num_input_tokens": True}
    asked = [
        ask(id=name, text_input="hello", max_tokens=40, stream=name == "flowing", **options, **returned)
        for name in ("whole", "flowing")
    ]
    responses = [response.infer_response for response in converse(slow, *asked)]
    (whole,) = (read(response) for response in responses if response.id == "whole")
    flowing = [read(response) for response in responses if response.id == "flowing"]
    assert (whole["finish_reason"], whole["num_output_tokens"]) == (["length"] * 3, [40] * 3)
    assert len(flowing) > 2
    for index in range(3):
        assert "".join(each["text_output"][index] for each in flowing) == whole["text_output"][index]
        assert sum(each["num_output_tokens"][index] for each in flowing) == 40
    assert flowing[0]["finish_reason"] == ["None"] * 3
    assert flowing[-1]["finish_reason"] == ["length"] * 3
    assert all(len(each["num_input_tokens"]) == 1 for each in flowing)
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)


def test_n_answers_are_admitted_and_left_together(tiny_model: Path) -> None:
    many = {"max_tokens": 200, "stream": True, "sampling_parameters": {"n": 3, "temperature": 1, "ignore_eos": True}}
    with running_server(fake_service(tiny_model, fake_step_s=0.01), max_requests=5) as small:
        with grpc.insecure_channel(small.address) as channel:
            call = pb_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
                iter([ask(id=name, text_input="x", **many) for name in ("first", "second")]), timeout=60
            )
            error = next(response for response in call if response.error_message)
            assert error.error_message.startswith("[request id: second] 5 requests are waiting or running")
            until(lambda: small.frontend.admitted == 3)
            call.cancel()
        until(lambda: small.frontend.admitted == 0 and small.runner.stats().running == 0)


def test_requests_without_ids_do_not_collide(server: RunningServer) -> None:
    responses = converse(server, *(ask(text_input="x", max_tokens=5) for _ in range(8)))
    assert [(response.infer_response.id, is_final(response.infer_response)) for response in responses] == [
        ("", True)
    ] * 8


def test_an_empty_final_response_where_it_is_wanted(server: RunningServer) -> None:
    request = ask(id="a", text_input="x", max_tokens=3)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    told, last = (response.infer_response for response in converse(server, request))
    assert read(told)["text_output"]
    assert not is_final(told)
    assert (last.id, is_final(last), len(last.outputs), len(last.raw_output_contents)) == ("a", True, 0, 0)


def test_errors_come_in_band_and_the_others_go_on(slow: RunningServer) -> None:
    asked = [
        ask(id="good", text_input="x", max_tokens=30, stream=True, sampling_parameters={"ignore_eos": True}),
        ask(id="good", text_input="x"),
        ask(id="bad", text_input="x", max_tokens=0),
        ask("other", id="lost"),
        ask(id="no spaces", text_input="x"),
        ask(text_input="x", stream=True, exclude_input_in_output=False),
    ]
    responses = converse(slow, *asked)
    errors = {response.error_message: response.infer_response for response in responses if response.error_message}
    assert list(errors) == [
        "[request id: good] id: is under way on this call; choose another",
        "[request id: bad] max_tokens: 0 is not an integer of at least 1",
        "[request id: lost] model_name: 'other' is not served; served are model and model_tokens",
        "[request id: no spaces] id: is not 1 to 128 letters, digits or ._:-",
        "exclude_input_in_output: cannot be false for a stream; leave it out",
    ]
    assert [(each.id, is_final(each)) for each in errors.values()] == [
        (name, True) for name in ("good", "bad", "lost", "no spaces", "")
    ]
    assert is_final(responses[-1].infer_response)
    assert (responses[-1].infer_response.id, responses[-1].error_message) == ("good", "")


def test_a_strict_stream_ends_with_the_first_error(slow: RunningServer) -> None:
    asked = [
        ask(id="good", text_input="x", max_tokens=200, stream=True, sampling_parameters={"ignore_eos": True}),
        ask(id="bad", text_input="x", max_tokens=0),
    ]
    with pytest.raises(grpc.RpcError) as refused:
        converse(slow, *asked, strict=True)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "max_tokens: 0 is not an integer of at least 1"
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)


def test_time_outs_end_one_request_or_the_whole_call(slow: RunningServer) -> None:
    long = {"max_tokens": 200, "stream": True, "sampling_parameters": {"ignore_eos": True}}
    hasty, patient = ask(id="hasty", text_input="x", **long), ask(id="patient", text_input="x", max_tokens=60)
    hasty.parameters["timeout"].int64_param = 200_000
    responses = converse(slow, hasty, patient)
    (error,) = (response.error_message for response in responses if response.error_message)
    assert error.startswith("[request id: hasty] the deadline cannot be met: ")
    ends = {each.infer_response.id: each.error_message for each in responses if is_final(each.infer_response)}
    assert (ends.keys(), ends["patient"]) == ({"hasty", "patient"}, "")
    with grpc.insecure_channel(slow.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for call in (
            lambda: list(stub.ModelStreamInfer(iter([ask(text_input="x", **long)]), timeout=0.4, metadata=STRICT)),
            lambda: stub.ModelInfer(ask(text_input="x", **{**long, "stream": False}), timeout=0.4),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)


def test_leaving_frees_every_row(slow: RunningServer) -> None:
    asked = [ask(id=f"r{n}", text_input="x", max_tokens=200, stream=True) for n in range(20)]
    for request in asked:
        request.parameters["ignore_eos"].bool_param = True
    with grpc.insecure_channel(slow.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter(asked), timeout=60)
        next(call)
        until(lambda: slow.frontend.admitted == 20)
        call.cancel()
        until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == 0)
        alone = stub.ModelInfer.future(ask(text_input="x", max_tokens=200, sampling_parameters={"ignore_eos": True}))
        until(lambda: slow.frontend.admitted == 1)
        alone.cancel()
        until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().live_bytes == 0)


def test_who_does_not_read_the_errors_is_read_no_further() -> None:
    sent = 0

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal sent
        while sent < 3000:
            sent += 1
            yield ask(id=f"r{sent}", max_tokens=0)

    async def talk() -> list[str]:
        models = Models.named("model")
        statistics = {model.name: Statistics(model.name) for model in models}
        stream = Stream(Frontend(8), models, statistics, deadline_s=None, strict=False)
        answers = stream.answer(requests())
        errors = [(await anext(answers)).error_message]
        for _ in range(5000):
            await asyncio.sleep(0)
        assert sent < 300
        return errors + [message.error_message async for message in answers]

    assert asyncio.run(talk()) == [f"[request id: r{n}] text_input: is missing; model needs it" for n in range(1, 3001)]
