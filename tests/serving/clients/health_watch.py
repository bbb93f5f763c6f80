"""A health probe of gRPC's own package: `health_watch.py ADDRESS SERVICE` prints a line for each status it is told."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address, service = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    for told in stub.Watch(request, wait_for_ready=True):
        name = health_pb2.HealthCheckResponse.ServingStatus.Name
        print(name(told.status), name(stub.Check(request).status), flush=True)
print("ended", flush=True)
