"""grpc.health.v1: is a service ready? NOT_SERVING through warm-up and drain, SERVING between.

The service "liveness" is SERVING as long as the server answers at all: for who would restart it otherwise.

grpcio's own asyncio servicer is not used: one watcher that leaves silences the others, and one that does not read
blocks every change of status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVENESS = "liveness"
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """One status for the server ("") and each of its services; lives on the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        return self._serving

    def add(self, service: str) -> None:
        """One more service that shares the server's status."""
        self._services.add(service)

    def set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._wake()

    def close(self) -> None:
        """Ends every Watch, so that the server can stop without waiting for the watchers."""
        self._closed = True
        self._wake()

    def _status(self, service: str) -> int:
        if service != LIVENESS and service not in self._services:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if self._serving or service == LIVENESS else _Status.NOT_SERVING)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> _Status:
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: unknown")
        return _Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[_Status]:
        shown = None
        while not self._closed:
            changed = self._changed
            status = self._status(request.service)
            if status != shown:
                yield _Status(status=status)
                shown = status
            # Set already, and at once, if the status changed while this watcher was slow to read.
            await changed.wait()
