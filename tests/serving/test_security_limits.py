"""What one caller can take before any work is done for it: bytes, headers, calls of a connection, silence."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import Client, ServerError, make_request
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc
from serving.security.tls import TlsFiles
from serving.server import ServerOptions
from tests.serving.certificates import Authority
from tests.serving.servers import RunningServer, fake_service, running_server, write_tiny_model

CALLS_PER_CONNECTION = 1024


def answers(server: RunningServer) -> bool:
    with Client(server.address) as client:
        return client.generate("x", max_tokens=2, timeout_s=60).finish.completion_tokens > 0


def test_a_message_that_is_too_long_is_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(make_request("a" * (4 * 2**20)), timeout=60))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The connection is as good as before.
        assert list(stub.Generate(make_request("x", max_tokens=2), timeout=60))
    assert answers(server)


def test_headers_that_are_too_long_are_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(make_request("x"), timeout=60, metadata=(("x-long", "a" * 20_000),)))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answers(server)


def test_calls_of_one_connection_are_limited_and_another_connection_is_answered(tiny_model: Path) -> None:
    async def watch(stub: health_pb2_grpc.HealthStub, heard: list[int]) -> None:
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            heard.append(answer.status)  # noqa: PERF401 - the calls share the list

    async def crowd(server: RunningServer) -> tuple[int, bool]:
        heard: list[int] = []
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            # A client hears the limit with the first answer.
            await stub.Check(health_pb2.HealthCheckRequest())
            watches = [asyncio.create_task(watch(stub, heard)) for _ in range(CALLS_PER_CONNECTION + 50)]
            end_s = time.monotonic() + 60
            while len(heard) < CALLS_PER_CONNECTION and time.monotonic() < end_s:
                await asyncio.sleep(0.05)
            # The others would have come by now.
            await asyncio.sleep(0.5)
            other = await asyncio.to_thread(answers, server)
            for each in watches:
                each.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
        return len(heard), other

    options = ServerOptions("127.0.0.1:0", max_requests=CALLS_PER_CONNECTION // 2)
    with running_server(fake_service(tiny_model), options=options) as server:
        heard, other = asyncio.run(crowd(server))
    assert heard == CALLS_PER_CONNECTION
    assert other


def test_a_template_that_never_ends_holds_nobody_up(tmp_path: Path) -> None:
    """It costs its own request: while it is rendered, others are answered, and afterwards conversations are too."""
    model = write_tiny_model(tmp_path)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == 'for ever' %}" + endless + "{% endif %}{{ messages[0].content }}"
    (model / "chat_template.jinja").write_text(source)
    with running_server(fake_service(model)) as server, Client(server.address) as client:
        bad = client.stream([{"role": "user", "content": "for ever"}], timeout_s=120)
        refused: list[ServerError] = []

        def wait() -> None:
            try:
                next(bad)
            except ServerError as error:
                refused.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        answered = 0
        while waiting.is_alive():
            assert client.generate("x", max_tokens=2).finish.completion_tokens > 0
            answered += 1
        waiting.join()
        assert [error.code for error in refused] == ["INVALID_ARGUMENT"]
        assert "chat template takes more than 1 s" in str(refused[0])
        assert answered > 3
        assert client.generate([{"role": "user", "content": "hello"}], max_tokens=2).finish.completion_tokens > 0


@pytest.mark.full
def test_who_connects_and_says_nothing_is_let_go(tiny_model: Path, tmp_path: Path) -> None:
    made = Authority(tmp_path).sign("server")
    encrypted = ServerOptions("127.0.0.1:0", tls=TlsFiles(made.cert, made.key))
    with (
        running_server(fake_service(tiny_model)) as plain,
        running_server(fake_service(tiny_model), options=encrypted) as locked,
    ):
        for server in (plain, locked):
            host, _, port = server.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=60) as silent:
                begin_s = time.monotonic()
                # It may say something of its own first.
                while silent.recv(4096):
                    pass
                assert 5 < time.monotonic() - begin_s < 30
