"""Metrics over HTTP for Prometheus, on a port and threads of their own, made when somebody scrapes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serving.frontend import Frontend
from serving.telemetry.families import Figures, engine_up, front_families, run_families
from serving.telemetry.run_view import Ask
from serving.telemetry.tally import LatencyBound

_LOG = logging.getLogger(__name__)
_PATIENCE_S = 2.0


class _Collector(Collector):
    """Reads front end and engine at each scrape."""

    def __init__(self, frontend: Frontend, ask: Ask, model: str, loop: asyncio.AbstractEventLoop) -> None:
        self._frontend, self._ask, self._model, self._loop = frontend, ask, model, loop

    def describe(self) -> list[Metric]:
        """Nothing, so that the registry does not collect before there is anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        if figures is not None:
            bound = figures["bound"]
            self._frontend.tally.bound = None if bound is None else LatencyBound(**bound)
            yield from run_families(figures, self._model, self._frontend.gate.waiting)
            if figures["pid"] != os.getpid():
                yield from _process(figures["pid"])
        yield engine_up(figures is not None)
        yield from front_families(self._frontend, self._model)

    def _figures(self) -> Figures | None:
        """None while there is no engine that answers."""

        async def ask() -> Figures | None:
            return await asyncio.wait_for(self._ask("figures", {}), _PATIENCE_S)

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(2 * _PATIENCE_S)
        except ValueError:
            return None
        except (TimeoutError, concurrent.futures.CancelledError, RuntimeError):
            _LOG.warning("the engine did not tell its figures in time")
            return None


def _process(pid: int) -> Iterable[Metric]:
    """Memory, processor time and files of the engine, where it is a process of its own."""
    collector: Collector = ProcessCollector(namespace="exegpt_engine", pid=lambda: pid, registry=None)
    return collector.collect()


class MetricsEndpoint:
    """Serves until it is closed.

    Args:
      host, port: to listen on; port 0 picks a free one.
      frontend, ask: where the numbers come from.
      model: its name, for labels.

    Raises:
      ValueError: the address is taken.
    """

    def __init__(self, host: str, port: int, frontend: Frontend, ask: Ask, model: str) -> None:
        registry = CollectorRegistry()
        registry.register(_Collector(frontend, ask, model, asyncio.get_running_loop()))
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=registry)
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ValueError(
                f"metrics_address: {host}:{port} cannot be bound; is another server listening there?"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Blocks for a moment; a scrape that is under way may need the event loop, so not on that."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
