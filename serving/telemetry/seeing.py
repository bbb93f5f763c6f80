"""Everything by which a server is seen into and operated: metrics, traces, request lines, the admin socket.

It is there from before the server is ready until it has stopped; the run that it looks at comes and goes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio

from serving import admin_socket
from serving.doors.admin import AdminDoor
from serving.frontend import Frontend
from serving.telemetry.capture import Capture
from serving.telemetry.endpoint import MetricsEndpoint
from serving.telemetry.logs import log_request
from serving.telemetry.run_view import Ask, bound_of
from serving.telemetry.tally import LatencyBound
from serving.telemetry.traces import Traces
from solver.plan.plan import Plan

_STOP_GRACE_S = 0.5


@dataclasses.dataclass(frozen=True)
class SeeingOptions:
    """What there is to be.

    Attributes:
      model: its name, for labels.
      metrics_address: host:port for Prometheus; port 0 picks a free one.
      admin_socket: path of the unix socket for operators.
      profile_dir: where captures of the devices go.
      otlp_endpoint: URL of a receiver of traces.
    """

    model: str = ""
    metrics_address: str | None = None
    admin_socket: Path | None = None
    profile_dir: Path | None = None
    otlp_endpoint: str | None = None

    @property
    def capture(self) -> Capture | None:
        return None if self.profile_dir is None else Capture(self.profile_dir)


class Seeing:
    """Opened once and closed once, on the event loop.

    Args:
      options: what there is to be.
      frontend: of the server.
      drain: begins the server's end.
      say: prints one line for the operator.
    """

    def __init__(
        self, options: SeeingOptions, frontend: Frontend, drain: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._options, self._frontend, self._drain, self._say = options, frontend, drain, say
        self._run: Ask | None = None
        self._metrics: MetricsEndpoint | None = None
        self._admin: grpc.aio.Server | None = None
        self._traces: Traces | None = None

    def see(self, ask: Ask, plan: Plan) -> None:
        """A run has begun."""
        self._run = ask
        bound = bound_of(plan)
        self._frontend.tally.bound = None if bound is None else LatencyBound(**bound)

    async def ask(self, about: str, arguments: Mapping[str, object]) -> Any:
        """The run that there is. Raises ValueError with one line."""
        if self._run is None:
            raise ValueError("engine: nothing runs yet; ask again when the server is ready")
        return await self._run(about, arguments)

    async def open(self) -> None:
        """Raises ValueError: an address or a path cannot be had, or a package is missing; `close` is still due."""
        options, frontend = self._options, self._frontend
        frontend.on_ended.append(log_request)
        if options.otlp_endpoint is not None:
            self._traces = Traces(options.otlp_endpoint, options.model)
            frontend.on_ended.append(self._traces)
        if options.metrics_address is not None:
            host, _, port = options.metrics_address.rpartition(":")
            self._metrics = MetricsEndpoint(host.strip("[]"), int(port), frontend, self.ask, options.model)
            self._say(f"metrics on {self._metrics.address}")
        if options.admin_socket is not None:
            door = AdminDoor(frontend, self.ask, self._drain)
            self._admin = admin_socket.make_admin_server(options.admin_socket, door)
            await self._admin.start()
            self._say(f"admin on {options.admin_socket}")

    async def close(self) -> None:
        """Ends whatever was opened."""
        if self._admin is not None and self._options.admin_socket is not None:
            await self._admin.stop(_STOP_GRACE_S)
            admin_socket.remove(self._options.admin_socket)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
