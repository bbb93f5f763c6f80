"""Spans as an OTLP receiver in this process gets them from a server: one a request, below its client's own."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.client import Client, ServerError, make_request
from serving.proto.exegpt.v1 import generation_pb2_grpc
from tests.serving.servers import server_process
from tests.serving.telemetry.scraped import until

if importlib.util.find_spec("opentelemetry.proto") is None:
    pytest.skip("OpenTelemetry is a development dependency", allow_module_level=True)

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver(pb_grpc.TraceServiceServicer):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    server, kept = grpc.server(futures.ThreadPoolExecutor(2)), Receiver()
    pb_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_one_span_a_request_with_its_moments(tiny_model: Path, receiver: tuple[Receiver, str]) -> None:
    kept, endpoint = receiver
    flags = ("--engine=fake", "--fake_step_s=0.002", f"--otlp_endpoint={endpoint}")
    with server_process(tiny_model, *flags) as server:
        with Client(server.address) as client:
            client.generate("a", request_id="alone", max_tokens=20, ignore_eos=True)
            with pytest.raises(ServerError):
                client.generate("refused", top_p=9.0)
        with grpc.insecure_channel(server.address) as channel:
            asked = make_request("b", "below", max_tokens=20, ignore_eos=True)
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            list(generation_pb2_grpc.GenerationStub(channel).Generate(asked, metadata=metadata))
        server.terminate()
        # What is left to send goes out before the end.
        assert server.finish()[0] == 0
    until(lambda: len(kept.spans) == 2)
    spans = {attributes(span)["gen_ai.request.id"]: span for span in kept.spans}
    assert kept.services == {"exegpt"}
    assert (spans["below"].trace_id.hex(), spans["below"].parent_span_id.hex()) == (TRACE, PARENT)
    assert not spans["alone"].parent_span_id
    for span in kept.spans:
        found = attributes(span)
        assert found["gen_ai.usage.output_tokens"] == 20
        assert found["gen_ai.response.finish_reasons"] == "length"
        assert [event.name for event in span.events] == ["queue", "encode", "decode", "last token"]
        moments = [event.time_unix_nano for event in span.events]
        assert moments == sorted(moments)
        assert span.start_time_unix_nano <= moments[0] < moments[-1] <= span.end_time_unix_nano


def test_a_receiver_that_is_not_there_holds_nothing_up(tiny_model: Path) -> None:
    flags = ("--engine=fake", "--otlp_endpoint=http://127.0.0.1:9")
    with server_process(tiny_model, *flags) as server:
        with Client(server.address) as client:
            assert client.generate("a", max_tokens=3, ignore_eos=True).token_ids
        server.terminate()
        assert server.finish()[0] == 0


def test_what_is_no_url_is_one_line(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--otlp_endpoint=127.0.0.1:4317") as server:
        status, _, errors = server.finish()
    assert status == 1
    assert errors.splitlines()[-1].startswith("exegpt: otlp_endpoint: '127.0.0.1:4317' is no URL such as http://")
