"""The gRPC server: options, services, and its life from warm-up over readiness to drain.

It listens at once and says NOT_SERVING while `prepare` loads and compiles on another thread; then a Runner starts and
health turns SERVING. The first SIGTERM or SIGINT turns it back, refuses what is new, waits for what was admitted, and
ends with status 0; a second one does not wait.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exegpt_jax.runner.loop import Runner
from serving.assemble import Service
from serving.doors import generation, health
from serving.doors.guard import Guard
from serving.doors.open_inference import door as open_inference
from serving.doors.vllm_engine.card import ModelCard
from serving.frontend import Frontend
from serving.proto.exegpt.v1 import generation_pb2_grpc
from serving.security.access import Access
from serving.security.addresses import check_address
from serving.security.keys import Keyring
from serving.security.tls import TlsFiles, server_credentials
from serving.telemetry.run_view import RunView
from serving.telemetry.seeing import Seeing, SeeingOptions
from serving.telemetry.trace_parent import KeepTraceParent

_STOP_GRACE_S = 2.0
_MIN_CALLS_PER_CONNECTION = 1024
_Result = TypeVar("_Result")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A second server on the same port must fail, not take half of the calls.
    ("grpc.so_reuseport", 0),
    # Whoever connects and says nothing is let go.
    ("grpc.server_handshake_timeout_ms", 10_000),
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
    """How to listen, whom to let in, and how much to take.

    Attributes:
      address: host:port; port 0 picks a free one.
      allow_remote: an address beyond this machine is permitted even without encryption or keys.
      health_address: a second host:port that answers health checks only, without TLS and keys; None for none.
      tls: certificate and key; None serves in the clear.
      keys: the file of keys; None lets everybody in.
      key_limit: calls, and requests, of one key under way; None leaves it at `max_requests`.
      model_name: what clients of the Open Inference Protocol call it.
      max_requests: requests admitted at once, running and waiting.
      settle_s: after SIGTERM health says NOT_SERVING for so long before requests are refused.
      drain_s: how long admitted requests may still run after that.
      vllm_engine: speak the protocol of smg's engines too, for this model; None for not.
      seeing: metrics, traces, and the socket for operators.
    """

    address: str
    allow_remote: bool = False
    health_address: str | None = None
    tls: TlsFiles | None = None
    keys: Path | None = None
    key_limit: int | None = None
    model_name: str = "model"
    max_requests: int = 1024
    settle_s: float = 0.0
    drain_s: float = 30.0
    vllm_engine: ModelCard | None = None
    seeing: SeeingOptions = dataclasses.field(default_factory=SeeingOptions)

    def check(self) -> None:
        """Raises ValueError for an address that is none, or that lacks protection."""
        locked = self.keys is not None or (self.tls is not None and self.tls.client_ca is not None)
        check_address(self.address, encrypted=self.tls is not None, locked=locked, allow_remote=self.allow_remote)
        if self.seeing.metrics_address is not None:
            given, permitted = self.seeing.metrics_address, self.allow_remote
            check_address(given, encrypted=False, locked=False, allow_remote=permitted, flag="metrics_address")
        if self.key_limit is not None and self.keys is None:
            raise ValueError(f"key_limit: {self.key_limit} given without --keys, which it is for; leave it out")


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
    options.check()
    keyring = None if options.keys is None else Keyring(options.keys)
    stopping, impatient = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, impatient, keyring)
    frontend = Frontend(options.max_requests, options.key_limit)
    states = health.Health([generation.SERVICE_NAME])
    server, bound = make_server(options, frontend, states, keyring)
    await server.start()
    say(f"listening on {bound}")
    probes = None
    seeing = Seeing(options.seeing, frontend, stopping.set, say)
    try:
        await seeing.open()
        if options.health_address is not None:
            probes, probed = make_health_server(options.health_address, states)
            await probes.start()
            say(f"health on {probed}")
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
        view = RunView(runner, service.cache_bytes, options.seeing.capture)
        seeing.see(lambda about, arguments: asyncio.to_thread(view.answer, about, arguments), service.plan)
        frontend.open(service.text, runner)
        states.set_serving(True)
        say("ready")
        await stopping.wait()
        states.set_serving(False)
        if options.settle_s:
            say(f"settling for {options.settle_s:g} s")
            await _first(asyncio.sleep(options.settle_s), impatient.wait())
        say(f"draining {frontend.admitted} requests")
        await _first(frontend.drain(options.drain_s), impatient.wait())
        if frontend.admitted:
            say(f"cutting {frontend.admitted} requests short")
        runner.stop()
        # The aborts that the Runner has just handed over end the remaining streams.
        await asyncio.sleep(0)
        if on_stopped is not None:
            on_stopped(runner)
    finally:
        states.close()
        await server.stop(_STOP_GRACE_S)
        if probes is not None:
            await probes.stop(0)
        await seeing.close()
    say("stopped")
    return 0


def make_server(
    options: ServerOptions, frontend: Frontend, states: health.Health, keyring: Keyring | None = None
) -> tuple[grpc.aio.Server, str]:
    """A server with all services, not started, and the address it is bound to.

    Raises ValueError if the address is taken, ValueError or OSError if the TLS files cannot be used."""
    interceptors: list[grpc.aio.ServerInterceptor] = [Guard()]
    if options.seeing.otlp_endpoint is not None:
        interceptors.append(KeepTraceParent())
    if keyring is not None:
        interceptors.append(Access(keyring, options.key_limit))
    # Over one connection a gateway may bring all requests there are; what is beyond twice of that waits in the client.
    streams = ("grpc.max_concurrent_streams", max(_MIN_CALLS_PER_CONNECTION, 2 * options.max_requests))
    server = grpc.aio.server(interceptors=interceptors, options=(*CHANNEL_OPTIONS, streams))
    generation_pb2_grpc.add_GenerationServicer_to_server(generation.GenerationDoor(frontend), server)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    open_inference.add_to(server, frontend, states, options.model_name)
    names = [
        generation.SERVICE_NAME,
        open_inference.SERVICE_NAME,
        health.SERVICE_NAME,
        reflection.SERVICE_NAME,
    ]
    if options.vllm_engine is not None:
        # Only here: its stubs are an optional extra.
        from serving.doors.vllm_engine import door

        door.add_to(server, frontend, states, options.vllm_engine)
        names.append(door.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server, _bind(server, options.address, "address", options.tls)


def make_health_server(address: str, states: health.Health) -> tuple[grpc.aio.Server, str]:
    """A server of grpc.health.v1 alone, for probes that know neither TLS nor keys, and the address it is bound to."""
    server = grpc.aio.server(interceptors=[Guard()], options=CHANNEL_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    return server, _bind(server, address, "health_address", None)


def _bind(server: grpc.aio.Server, address: str, flag: str, tls: TlsFiles | None) -> str:
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(tls))
    except RuntimeError as error:
        raise ValueError(f"{flag}: {address} cannot be bound; is another server listening there?") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _on_signals(stopping: asyncio.Event, impatient: asyncio.Event, keyring: Keyring | None) -> None:
    def stop() -> None:
        if stopping.is_set():
            impatient.set()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if keyring is not None:
        loop.add_signal_handler(signal.SIGHUP, keyring.reload)


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
