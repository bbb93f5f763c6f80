"""Every method of a server and the messages it takes, as reflection tells: this side has none of their code."""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2_grpc


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      path: as it is dispatched on.
      request, response: classes of its messages.
      takes_stream: many requests make a call.
    """

    path: str
    request: type[Message]
    response: type[Message]
    takes_stream: bool


def methods(target: str) -> list[Method]:
    with grpc.insecure_channel(target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(**asked: str) -> Any:
            (answer,) = stub.ServerReflectionInfo(iter([pb.ServerReflectionRequest(**asked)]))
            return answer

        names = [each.name for each in ask(list_services="").list_services_response.service]
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        for name in names:
            for data in ask(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(data)
                files[file.name] = file
    pool = _pool_of(files)
    return [
        Method(
            f"/{name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            method.client_streaming,
        )
        for name in names
        for method in pool.FindServiceByName(name).methods
    ]


def _pool_of(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> descriptor_pool.DescriptorPool:
    """Each file behind those that it needs."""
    pool = descriptor_pool.DescriptorPool()

    def add(name: str) -> None:
        if (file := files.pop(name, None)) is not None:
            for needed in file.dependency:
                add(needed)
            pool.Add(file)

    for name in tuple(files):
        add(name)
    return pool
