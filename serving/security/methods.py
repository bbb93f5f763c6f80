"""Which kind of key opens which method. What is not listed here is closed to everybody.

The names are those that gRPC dispatches on, compared letter by letter: a path that is written otherwise is another
method, and closed. A test holds the table against what the server has registered.
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.security.keys import Kind


def _methods(service: str, names: str) -> Iterable[str]:
    return (f"/{service}/{name}" for name in names.split())


OPEN: frozenset[str] = frozenset(_methods("grpc.health.v1.Health", "Check"))
"""Needs no key: a probe has none."""

_LOOKING: frozenset[str] = frozenset(
    [
        *_methods("grpc.health.v1.Health", "Check List Watch"),
        *_methods("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"),
        *_methods("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
        *_methods(
            "inference.GRPCInferenceService",
            "ServerLive ServerReady ServerMetadata ModelReady ModelMetadata ModelConfig ModelStatistics"
            " RepositoryIndex",
        ),
        *_methods("vllm.grpc.engine.VllmEngine", "HealthCheck GetModelInfo GetServerInfo GetLoads"),
    ]
)

_ASKING: frozenset[str] = frozenset(
    [
        *_methods("exegpt.v1.Generation", "Generate GenerateStream"),
        *_methods("inference.GRPCInferenceService", "ModelInfer ModelStreamInfer"),
        *_methods("vllm.grpc.engine.VllmEngine", "Generate Abort Embed GetTokenizer"),
    ]
)

BY_KIND: dict[Kind, frozenset[str]] = {"client": _LOOKING | _ASKING, "monitor": _LOOKING}
