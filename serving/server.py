"""The gRPC server: options, services, and its life from warm-up over readiness to drain.

It listens at once and says NOT_SERVING while `prepare` loads and compiles on another thread; then a Runner starts and
health turns SERVING. The first SIGTERM or SIGINT turns it back, refuses what is new, waits for what was admitted, and
ends with status 0; a second one does not wait.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exegpt_jax.runner.loop import Runner
from serving.assemble import Service
from serving.doors import generation, health
from serving.doors.guard import Guard
from serving.frontend import Frontend
from serving.proto.exegpt.v1 import generation_pb2_grpc

_LOG = logging.getLogger(__name__)
_STOP_GRACE_S = 2.0
_Result = TypeVar("_Result")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A second server on the same port must fail, not take half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 2**20),
    ("grpc.max_metadata_size", 8 * 2**10),
    ("grpc.absolute_max_metadata_size", 16 * 2**10),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How to listen and how much to take.

    Attributes:
      address: host:port; port 0 picks a free one.
      allow_remote: an address beyond this machine is permitted (there is no encryption and there are no keys).
      max_requests: requests admitted at once, running and waiting.
      drain_s: how long admitted requests may still run after SIGTERM.
    """

    address: str
    allow_remote: bool = False
    max_requests: int = 1024
    drain_s: float = 30.0


def check_address(options: ServerOptions) -> None:
    """Raises ValueError for an address that is none, or that others could reach without `allow_remote`."""
    host, colon, port = options.address.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address: {options.address!r} is not host:port; give for example 127.0.0.1:50051")
    if options.allow_remote:
        _LOG.warning("address: %s can be reached from other machines, without encryption or keys", options.address)
        return
    bare = host.strip("[]")
    try:
        loopback = bare == "localhost" or ipaddress.ip_address(bare).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            f"address: {host} is not this machine's loopback; give 127.0.0.1 or permit it with --allow_remote"
        )


async def run_server(
    options: ServerOptions,
    prepare: Callable[[], Service],
    *,
    say: Callable[[str], None],
    on_stopped: Callable[[Runner], None] | None = None,
) -> int:
    """Serves until a signal; returns the exit status.

    Args:
      options: where and how much.
      prepare: loads and warms the engine; runs on a thread of its own.
      say: prints one line for the operator ("listening on ...", "ready").
      on_stopped: called with the stopped Runner, to keep its timeline and tell its figures.

    Raises:
      ValueError, OSError: what `prepare` raises, or an address that cannot be bound.
    """
    check_address(options)
    stopping, impatient = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, impatient)
    frontend = Frontend(options.max_requests)
    states = health.Health([generation.SERVICE_NAME])
    server, bound = make_server(options, frontend, states)
    await server.start()
    say(f"listening on {bound}")
    try:
        preparing = _in_thread(prepare)
        await _first(preparing, stopping.wait())
        if not preparing.done():
            say("stopped while warming up")
            await server.stop(0)
            # The thread is inside a compiler that no exit can interrupt in good order.
            sys.stdout.flush()
            os._exit(0)
        service = preparing.result()
        runner = Runner(
            service.plan,
            service.executor,
            frontend.hand_over,
            predictor=service.predictor,
            follower=service.follower,
        )
        runner.start()
        # Long-lived objects leave the collector's sight: a full collection would stall every stream.
        gc.collect()
        gc.freeze()
        frontend.open(service.text, runner)
        states.set_serving(True)
        say("ready")
        await stopping.wait()
        states.set_serving(False)
        say(f"draining {frontend.admitted} requests")
        await _first(frontend.drain(options.drain_s), impatient.wait())
        runner.stop()
        # The aborts that the Runner has just handed over end the remaining streams.
        await asyncio.sleep(0)
        if on_stopped is not None:
            on_stopped(runner)
    finally:
        states.close()
        await server.stop(_STOP_GRACE_S)
    say("stopped")
    return 0


def make_server(options: ServerOptions, frontend: Frontend, states: health.Health) -> tuple[grpc.aio.Server, str]:
    """A server with all services, not started, and the address it is bound to. Raises ValueError if that is taken."""
    server = grpc.aio.server(interceptors=[Guard()], options=CHANNEL_OPTIONS)
    generation_pb2_grpc.add_GenerationServicer_to_server(generation.GenerationDoor(frontend), server)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    names = (generation.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(options.address)
    except RuntimeError as error:
        raise ValueError(f"address: {options.address} cannot be bound; is another server listening there?") from error
    return server, f"{options.address.rpartition(':')[0]}:{port}"


def _on_signals(stopping: asyncio.Event, impatient: asyncio.Event) -> None:
    def stop() -> None:
        if stopping.is_set():
            impatient.set()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _in_thread(work: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """`work` on a daemon thread, which does not hold up the process's end as an executor's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = work(), None
        # Whatever it is belongs to the one who waits.
        except BaseException as raised:
            result, error = None, raised
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="prepare", daemon=True).start()
    return future


async def _first(*awaitables: object) -> None:
    """Waits for one of several and cancels the others, unless they are futures that somebody holds."""
    tasks = [a if isinstance(a, asyncio.Future) else asyncio.ensure_future(a) for a in awaitables]  # type: ignore
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, awaitable in zip(tasks, awaitables, strict=True):
        if task is not awaitable:
            task.cancel()
