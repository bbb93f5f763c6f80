"""The gRPC server: how it listens, whom it lets in, and the services that it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.admission.budget import UNSAID, QueueLimits
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
from serving.telemetry.seeing import SeeingOptions
from serving.telemetry.trace_parent import KeepTraceParent

_MIN_CALLS_PER_CONNECTION = 1024

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A second server on the same port must fail, not take half of the calls.
    ("grpc.so_reuseport", 0),
    # Whoever connects and says nothing is let go.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Calls that nobody has looked at yet: beyond the first number gRPC drops some, beyond the second all, as CANCELLED,
    # which tells a client nothing. A burst is to be refused by us, with a reason.
    ("grpc.server.max_pending_requests", 8 * 2**10),
    ("grpc.server.max_pending_requests_hard_limit", 16 * 2**10),
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
      queue: what may wait of tokens and bytes.
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
    queue: QueueLimits = UNSAID
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
