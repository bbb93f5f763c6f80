"""inference.GRPCInferenceService: whole answers, what is told of models, and readiness."""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from exegpt_jax.text.answer import TokenLogprobs
from serving.client import Client
from serving.doors.open_inference.models import Models
from serving.doors.open_inference.requests import asked_of
from serving.doors.open_inference.responses import response_of
from serving.live_request import Update
from serving.proto.inference import inference_pb2 as pb
from serving.proto.inference import inference_pb2_grpc as pb_grpc
from tests.serving.open_inference import ask, converse, is_final, read
from tests.serving.servers import RunningServer, environment, fake_service, running_server
from tests.serving.test_generation_door import until


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> grpc.Channel:
    return grpc.insecure_channel(server.address)


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def test_a_whole_answer_is_that_of_the_other_door(
    server: RunningServer, stub: pb_grpc.GRPCInferenceServiceStub
) -> None:
    with Client(server.address) as client:
        reply = client.generate("hello", max_tokens=12, ignore_eos=True)
    options: dict[str, object] = {"sampling_parameters": {"ignore_eos": True, "max_tokens": "12"}}
    returned = dict.fromkeys(("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"), True)
    text = stub.ModelInfer(ask(id="mine", text_input="hello", exclude_input_in_output=True, **options, **returned))
    assert (text.model_name, text.model_version, text.id, is_final(text)) == ("model", "1", "mine", True)
    assert read(text) == {
        "text_output": reply.text,
        "finish_reason": "length",
        "num_input_tokens": [reply.finish.prompt_tokens],
        "num_output_tokens": [12],
    }
    # As the vLLM back end does, unless it is told not to.
    assert read(stub.ModelInfer(ask(text_input="hello", **options))) == {"text_output": "hello" + reply.text}
    ids = list(server.text.tokenizer.encode("hello"))
    tokens = stub.ModelInfer(ask("model_tokens", input_ids=ids, **options))
    assert read(tokens) == {"output_ids": list(reply.token_ids)}


def test_typed_contents_parameters_and_batch_dimensions(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    request = pb.ModelInferRequest(model_name="model_tokens", model_version="1")
    request.inputs.add(name="input_ids", datatype="INT64", shape=[1, 3]).contents.int64_contents.extend([7, 8, 9])
    request.inputs.add(name="request_output_len", datatype="INT32", shape=[1, 1]).contents.int_contents.append(5)
    request.parameters["ignore_eos"].string_param = "True"
    request.parameters["temperature"].double_param = 0.0
    request.parameters["stop_token_ids"].string_param = "[3, 4]"
    first = read(stub.ModelInfer(request))
    again = read(stub.ModelInfer(ask("model_tokens", input_ids=[7, 8, 9], request_output_len=5)))
    assert len(first["output_ids"]) == 5
    assert first == again


def test_only_the_named_outputs_come(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    asked = ask(outputs=("num_output_tokens", "finish_reason"), text_input="a", max_tokens=3, return_logprobs=True)
    assert read(stub.ModelInfer(asked)).keys() == {"finish_reason", "num_output_tokens"}


def test_without_logprobs_asked_for_they_are_null(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    asked = ask(text_input="a", max_tokens=3, return_logprobs=True, return_cumulative_logprob=True)
    told = read(stub.ModelInfer(asked))
    assert told["logprobs"] == "null"
    assert math.isnan(told["cumulative_logprob"][0])


def test_unknown_models_are_not_found(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    calls = [
        lambda: stub.ModelInfer(ask("other", text_input="x")),
        lambda: stub.ModelInfer(pb.ModelInferRequest(model_name="model", model_version="2")),
        lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="other")),
        lambda: stub.ModelConfig(pb.ModelConfigRequest(name="model", version="2")),
        lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(name="other")),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert not stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
    assert refused.value.details() == "model_name: 'other' is not served; served are model and model_tokens"


def test_before_and_after_serving(tiny_model: Path) -> None:
    service = fake_service(tiny_model, fake_step_s=0.01)
    # A client that keeps its side open.
    gone: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
    with running_server(service, warm=False) as server, grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)

        def index() -> list[tuple[str, str, str]]:
            models = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
            return [(model.name, model.state, model.reason) for model in models]

        def ready() -> tuple[bool, bool, int]:
            models = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
            server_ready = stub.ServerReady(pb.ServerReadyRequest()).ready
            return server_ready, stub.ModelReady(pb.ModelReadyRequest(name="model")).ready, len(models)

        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert ready() == (False, False, 0)
        assert index() == [(name, "UNAVAILABLE", "warming up") for name in ("model", "model_tokens")]
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(ask(id="mine", text_input="x"))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert dict(refused.value.trailing_metadata()).items() >= {
            ("grpc-retry-pushback-ms", "1000"),
            ("x-request-id", "mine"),
        }
        server.call(server.frontend.open, server.text, server.runner)
        server.call(server.states.set_serving, True)
        assert ready() == (True, True, 2)
        assert index() == [(name, "READY", "") for name in ("model", "model_tokens")]
        busy = stub.ModelStreamInfer(iter([ask(text_input="x", max_tokens=60, stream=True)]), timeout=60)
        until(lambda: server.frontend.admitted == 1)
        server.call(server.states.set_serving, False)
        server.drain()
        assert index()[0] == ("model", "UNAVAILABLE", "draining")
        assert is_final(list(busy)[-1].infer_response)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ModelStreamInfer(iter(gone.get, None), timeout=60))
        gone.put(None)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_what_is_told_of_the_server_and_its_models(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, bool(server.version)) == ("exegpt", True)
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="model_tokens"))
    assert (metadata.name, list(metadata.versions)) == ("model_tokens", ["1"])
    tensors = [(each.name, each.datatype, list(each.shape)) for each in (*metadata.inputs, *metadata.outputs)]
    assert tensors[0] == ("input_ids", "INT32", [-1])
    assert ("output_ids", "INT32", [-1]) in tensors
    config = stub.ModelConfig(pb.ModelConfigRequest(name="model")).config
    assert (config.max_batch_size, config.model_transaction_policy.decoupled) == (0, True)
    assert {each.name for each in config.input if not each.optional} == {"text_input"}
    assert {each.name: each.data_type for each in config.output}["text_output"] == pb.TYPE_STRING


def test_statistics_count_what_was_answered_and_what_was_not(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, fake_step_s=0.005)) as server:
        converse(server, *(ask(text_input="x", max_tokens=4) for _ in range(3)), ask(text_input="x", max_tokens=0))
        with grpc.insecure_channel(server.address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(ask(text_input="x", max_tokens=4))
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(
                    ask(text_input="x", max_tokens=200, sampling_parameters={"ignore_eos": True}), timeout=0.2
                )
            # The client hears of its deadline before the server has put it down.
            until(lambda: server.frontend.admitted == 0)
            text, tokens = stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert (text.name, text.inference_count, text.inference_stats.success.count) == ("model", 4, 4)
    assert text.inference_stats.fail.count == 2
    assert text.inference_stats.success.ns >= text.inference_stats.compute_infer.ns > 0
    assert time.time() - 600 < text.last_inference / 1000 <= time.time() + 1
    assert (tokens.name, tokens.inference_count) == ("model_tokens", 0)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "SystemSharedMemoryRegister", "TraceSetting", "LogSettings"])
def test_what_is_not_served_is_unimplemented(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"", timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_log_probabilities_have_the_shape_of_the_vllm_back_end() -> None:
    update = Update(
        text="ab",
        token_ids=(5, 6),
        logprobs=(TokenLogprobs(-0.5, ((5, -0.5), (7, -1.0))), TokenLogprobs(-math.inf, ((8, -0.1), (9, -0.2)))),
    )
    asked = asked_of(Models.named("model"), ask(text_input="x", return_logprobs=True, stream=True))
    assert json.loads(read(response_of(asked, [update], None, final=False))["logprobs"]) == [
        {
            "5": {"logprob": -0.5, "rank": 1, "decoded_token": None},
            "7": {"logprob": -1.0, "rank": 2, "decoded_token": None},
        },
        {
            "6": {"logprob": -9999.0, "rank": None, "decoded_token": None},
            "8": {"logprob": -0.1, "rank": 1, "decoded_token": None},
            "9": {"logprob": -0.2, "rank": 2, "decoded_token": None},
        },
    ]


def test_what_users_import_leaves_the_package_inference_to_others() -> None:
    """tritonclient defines the same messages; one process can hold one definition."""
    program = (
        "import serving.client, serving.load\n"
        "from google.protobuf import descriptor_pool as pool\n"
        "try: pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError: print('free')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.stdout == "free\n", done.stderr
