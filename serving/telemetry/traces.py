"""One OpenTelemetry span per request, made when it has ended and sent in the background (--otlp_endpoint).

    arrival --- queue ---> encode --- first token ---> decode ---> last token

The moments are events of the span. A client that sends `traceparent` finds it below its own span. The packages come
with the extra `otlp`; attribute names are those of OpenTelemetry's conventions for generative AI, and vLLM's for times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.telemetry.tally import Ended

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# With a receiver that does not answer, the end of the server included.
_PATIENCE_S = 2.0


class Traces:
    """Sends a span for each request that it is told of, until it is closed; `close` blocks for what is left to send.

    Args:
      endpoint: URL of an OTLP receiver that speaks gRPC; https:// uses TLS.
      model: its name, for a label.

    Raises:
      ValueError: the packages are not installed, or the endpoint is no such URL.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"otlp_endpoint: {endpoint!r} is no URL such as http://127.0.0.1:4317")
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ValueError(
                "otlp_endpoint: OpenTelemetry is not installed; install exegpt-jax with its extra otlp"
            ) from error
        self._provider: TracerProvider = TracerProvider(resource=Resource.create({"service.name": "exegpt"}))
        insecure = parts.scheme == "http"
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_PATIENCE_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tell = _teller(self._provider, model)

    def __call__(self, ended: Ended) -> None:
        self._tell(ended)

    def close(self) -> None:
        self._provider.shutdown()


def _teller(provider: TracerProvider, model: str) -> Callable[[Ended], None]:
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer, read = provider.get_tracer("exegpt"), TraceContextTextMapPropagator().extract
    epoch_ns = time.time_ns() - time.monotonic_ns()

    def at_ns(moment_s: float) -> int:
        return epoch_ns + round(moment_s * 1e9)

    def tell(ended: Ended) -> None:
        parent = read({"traceparent": ended.trace_parent}) if ended.trace_parent else None
        span = tracer.start_span(
            "llm_request",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=at_ns(ended.arrival_s),
            attributes=_attributes(ended, model),
        )
        moments = {"queue": ended.arrival_s, "encode": ended.encode_start_s, "decode": ended.first_token_s}
        for name, moment_s in (moments | {"last token": ended.last_token_s}).items():
            if moment_s:
                span.add_event(name, timestamp=at_ns(moment_s))
        if ended.outcome in ("error", "deadline"):
            span.set_status(Status(StatusCode.ERROR, ended.outcome))
        span.end(at_ns(ended.ended_s))

    return tell


def _attributes(ended: Ended, model: str) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {
        "gen_ai.request.model": model,
        "gen_ai.request.id": ended.request_id,
        "gen_ai.response.finish_reasons": ended.outcome,
        "gen_ai.usage.input_tokens": ended.prompt_tokens,
        "gen_ai.usage.output_tokens": ended.completion_tokens,
        "gen_ai.latency.e2e": ended.ended_s - ended.arrival_s,
    }
    if ended.encode_start_s:
        found["gen_ai.latency.time_in_queue"] = ended.encode_start_s - ended.arrival_s
    if ended.first_token_s:
        found["gen_ai.latency.time_to_first_token"] = ended.first_token_s - ended.arrival_s
    return found
