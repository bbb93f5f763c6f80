"""Requests of the Open Inference Protocol as tests write them, and responses as they read them."""

from __future__ import annotations

import json
import struct
from typing import Any

import grpc
import numpy as np

from serving.proto.inference import inference_pb2 as pb
from serving.proto.inference import inference_pb2_grpc as pb_grpc
from tests.serving.servers import RunningServer

LENGTH = struct.Struct("<I")


def tensor(value: object) -> tuple[str, list[int], bytes]:
    """Datatype, shape and raw contents of a value."""
    match value:
        case bool():
            return "BOOL", [1], bytes([value])
        case int():
            return "INT32", [1], struct.pack("<i", value)
        case str():
            return "BYTES", [1], LENGTH.pack(len(value.encode())) + value.encode()
        case dict():
            return tensor(json.dumps(value))
        case list():
            return "INT32", [len(value)], np.array(value, "<i4").tobytes()
    raise AssertionError(value)


def ask(model: str = "model", id: str = "", outputs: tuple[str, ...] = (), **inputs: object) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=id)
    for name, value in inputs.items():
        datatype, shape, raw = tensor(value)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def read(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Outputs by name: lists of numbers, and of texts the only one or a list."""
    found: dict[str, Any] = {}
    assert len(response.outputs) == len(response.raw_output_contents)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            texts = []
            while raw:
                end = LENGTH.size + LENGTH.unpack_from(raw)[0]
                assert end <= len(raw)
                texts.append(raw[LENGTH.size : end].decode())
                raw = raw[end:]
            assert list(output.shape) == [len(texts)]
            found[output.name] = texts[0] if len(texts) == 1 else texts
        else:
            values = np.frombuffer(raw, {"INT32": "<i4", "UINT32": "<u4", "FP32": "<f4"}[output.datatype]).tolist()
            assert list(output.shape) == [len(values)]
            found[output.name] = values
    return found


STRICT = (("triton_grpc_error", "true"),)


def converse(
    server: RunningServer, *requests: pb.ModelInferRequest, strict: bool = False
) -> list[pb.ModelStreamInferResponse]:
    metadata = STRICT if strict else ()
    with grpc.insecure_channel(server.address) as channel:
        call = pb_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests), timeout=60, metadata=metadata)
        return list(call)


def is_final(response: pb.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param
