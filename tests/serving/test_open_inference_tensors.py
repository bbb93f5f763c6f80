"""Requests that are wrong: each is refused in one line, whatever its bytes are."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.doors.open_inference.models import Models
from serving.doors.open_inference.requests import asked_of
from serving.proto.inference import inference_pb2 as pb
from serving.proto.inference import inference_pb2_grpc as pb_grpc
from tests.serving.open_inference import LENGTH, ask
from tests.serving.servers import RunningServer


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> grpc.Channel:
    return grpc.insecure_channel(server.address)


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def with_priority(level: int) -> pb.ModelInferRequest:
    request = ask(text_input="x")
    request.parameters["priority"].int64_param = level
    return request


BAD = [
    (ask(), "text_input: is missing; model needs it"),
    (ask(prompt="x"), "prompt: unknown input of model; known are text_input, "),
    (ask(text_input=3), "text_input: datatype 'INT32' is not BYTES"),
    (ask(text_input="x", max_tokens=0), "max_tokens: 0 is not an integer of at least 1"),
    (ask(text_input="x", max_tokens=[1, 2]), "max_tokens: shape [2] is not [1]"),
    (ask(text_input="x", stream=True), "stream: cannot be true for ModelInfer"),
    (ask(text_input="x", sampling_parameters="[1]"), "sampling_parameters: is no JSON object"),
    (ask(text_input="x", sampling_parameters="[" * 100000), "sampling_parameters: is no JSON object"),
    # Half of a character, which no line could name.
    (ask(text_input="x", sampling_parameters='{"\\ud800": 1}'), "sampling_parameters: is no JSON object"),
    (ask(text_input="x", sampling_parameters='{"stop": ["\\udfff"]}'), "sampling_parameters: is no JSON object"),
    (ask(text_input="x", sampling_parameters={"top_p": "1.5"}), "top_p: 1.5 is not a number in (0, 1]"),
    (ask(text_input="x", sampling_parameters={"top_k": "9" * 5000}), "top_k: "),
    (ask(text_input="x", sampling_parameters='{"temperature": NaN}'), "temperature: nan is not a number"),
    (ask(text_input="x", sampling_parameters={"n": 2}), "n: 2 answers without sampling are all the same"),
    (ask(text_input="x", sampling_parameters={"n": "9"}), "n: '9' is not an integer in [1, 8]"),
    (ask("model_tokens", input_ids=[1], sampling_parameters={"n": 2}), "n: 2 answers differ in length"),
    (ask(text_input="x", sampling_parameters={"best_of": 2}), "best_of: unknown parameter"),
    (ask(text_input="x", sampling_parameters={"messages": []}), "messages: is no parameter"),
    (ask(text_input="x", max_tokens=1, sampling_parameters={"max_tokens": 1}), "max_tokens: is given twice"),
    (ask(text_input="x", outputs=("embedding",)), "embedding: unknown output of model"),
    (ask("model_tokens", input_ids=[1, -1]), "input_ids[1]: -1 is no token id in [0, 319]"),
    (ask("model_tokens", input_ids=[]), "input_ids: has 0 tokens"),
    (ask(text_input="x" * 1000), "text_input: has 1001 tokens; 1 to 128 fit"),
    (with_priority(-1), "priority: '-1' is not a level: 1 goes first"),
    (with_priority(2**31), "priority: '2147483648' is not a level: 1 goes first"),
    (ask(text_input="x", id="a b"), "id: is not 1 to 128 letters"),
    (ask(text_input="x", id="x" * 129), "id: is not 1 to 128 letters"),
]


def test_the_first_of_tritons_levels_goes_before_whoever_names_none() -> None:
    models = Models.named("model")
    orders = [asked_of(models, with_priority(level)).fields["priority"] for level in (1, 99, 0, 100, 101)]
    assert orders == [-99, -1, 0, 0, 1]
    assert "priority" not in asked_of(models, ask(text_input="x")).fields
    # What vLLM's back end takes is vLLM's.
    request = ask(text_input="x", sampling_parameters={"priority": -3})
    assert asked_of(models, request).fields["priority"] == -3


@pytest.mark.parametrize(("request_", "line"), BAD)
def test_bad_input_is_refused_in_one_line(
    stub: pb_grpc.GRPCInferenceServiceStub, request_: pb.ModelInferRequest, line: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request_, timeout=20)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(line)
    assert "\n" not in refused.value.details()


def _broken(change: str) -> pb.ModelInferRequest:
    request = ask(text_input="hello", max_tokens=4)
    match change:
        case "raw missing":
            del request.raw_input_contents[1]
        case "both":
            request.inputs[0].contents.bytes_contents.append(b"hello")
        case "twice":
            request.inputs[1].CopyFrom(request.inputs[0])
            request.raw_input_contents[1] = request.raw_input_contents[0]
        case "short length":
            request.raw_input_contents[0] = b"\x01\x00"
        case "short element":
            request.raw_input_contents[0] = LENGTH.pack(9) + b"hello"
        case "two elements":
            request.raw_input_contents[0] *= 2
        case "no UTF-8":
            request.raw_input_contents[0] = LENGTH.pack(1) + b"\xff"
        case "odd bytes":
            request.raw_input_contents[1] = b"\x01\x00\x00"
        case "negative shape":
            request.inputs[1].shape[:] = [-1]
        case "three dimensions":
            request.inputs[1].shape[:] = [1, 1, 1]
        case "shared memory":
            request.inputs[0].parameters["shared_memory_region"].string_param = "x"
        case "classes":
            request.outputs.add(name="text_output").parameters["classification"].int64_param = 3
        case "no value":
            request.parameters["temperature"].SetInParent()
        case "sequence":
            request.parameters["sequence_id"].int64_param = 3
        case "reserved":
            request.parameters["triton_other"].bool_param = True
        case "timeout":
            request.parameters["timeout"].string_param = "9" * 400
    return request


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("raw missing", "raw_input_contents: has 1 entries for 2 inputs"),
        ("both", "text_input: has contents beside raw_input_contents"),
        ("twice", "text_input: is given twice"),
        ("short length", "text_input: its bytes end inside an element's length"),
        ("short element", "text_input: its bytes end inside an element"),
        ("two elements", "text_input: shape [1] has 1 elements, but 2 came"),
        ("no UTF-8", "text_input: is not valid UTF-8"),
        ("odd bytes", "max_tokens: 3 bytes are no whole number of INT32 elements"),
        ("negative shape", "max_tokens: shape [-1] is not [1]"),
        ("three dimensions", "max_tokens: shape [1, 1, 1] is not [1]"),
        ("shared memory", "text_input: has parameters (shared memory is not served)"),
        ("classes", "text_output: has parameters (classes, shared memory), which are not served"),
        ("no value", "temperature: the parameter has no value"),
        ("sequence", "sequence_id: is not served"),
        ("reserved", "triton_other: is not served"),
        ("timeout", "timeout: is not a number of microseconds"),
    ],
)
def test_broken_tensors_are_refused_in_one_line(stub: pb_grpc.GRPCInferenceServiceStub, change: str, line: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(_broken(change), timeout=20)
    assert (refused.value.code(), refused.value.details()[: len(line)]) == (grpc.StatusCode.INVALID_ARGUMENT, line)


@given(st.data())
def test_no_request_is_the_servers_fault(server: RunningServer, channel: grpc.Channel, data: st.DataObject) -> None:
    """Whatever bytes come, they are answered or refused as the client's."""
    base = data.draw(st.sampled_from([ask(text_input="hi", max_tokens=2, id="x"), ask("model_tokens", input_ids=[5])]))
    base.parameters["top_p"].double_param = 0.5
    raw = bytearray(base.SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(bytes(raw), timeout=20)
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), call
    assert server.frontend.admitted == 0


def test_a_request_that_grows_beyond_the_limit_is_not_unpacked(channel: grpc.Channel) -> None:
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as refused:
        method(bytes(8 * 2**20), timeout=20, compression=grpc.Compression.Gzip)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
