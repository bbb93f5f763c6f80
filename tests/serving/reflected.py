"""What a server has registered, as reflection tells, and how a bare call of a method ends."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

Metadata = tuple[tuple[str, str | bytes], ...]


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


def registered_methods(address: str, key: str) -> list[str]:
    """Every method of every service, as gRPC dispatches on it."""
    listed = _ask(address, key, reflection_pb2.ServerReflectionRequest(list_services=""))
    found = []
    for service in listed.list_services_response.service:
        described = _ask(address, key, reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name))
        files = map(
            descriptor_pb2.FileDescriptorProto.FromString, described.file_descriptor_response.file_descriptor_proto
        )
        (this,) = (each for file in files for each in file.service if f"{file.package}.{each.name}" == service.name)
        found.extend(f"/{service.name}/{method.name}" for method in this.method)
    return found


def code_of(address: str, method: str, metadata: Metadata) -> str:
    """The status of a call with an empty message, or OPEN if it is answered or waits for more."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
        try:
            for _ in call:
                call.cancel()
                return "OPEN"
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OPEN"


def _ask(
    address: str, key: str, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), metadata=bearer(key))
    return answer
