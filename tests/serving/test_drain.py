"""SIGTERM under load: nobody who was admitted loses a token, probes hear of it at once, and the exit status is 0."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import AsyncClient, AsyncSession, Client, Reply, ServerError
from tests.serving.servers import ServerProcess, server_process

STREAMS, OVER_ONE_CALL = 200, 50
TOKENS = 200
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def drained_under_load(server: ServerProcess) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds from SIGTERM to NOT_SERVING, and the tokens of each stream; all were live when the signal came."""
    begun, done = asyncio.Semaphore(0), 0

    async def ask(client: AsyncClient | AsyncSession, index: int) -> tuple[int, ...]:
        nonlocal done
        tokens: list[int] = []
        async for chunk in client.stream(f"prompt {index}", max_tokens=TOKENS, ignore_eos=True):
            if not tokens:
                begun.release()
            tokens.extend(chunk.token_ids)
        assert chunk.finish is not None
        done += 1
        return tuple(tokens)

    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        AsyncClient(server.address) as client,
        client.session() as session,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        asked = [
            asyncio.create_task(ask(session if index < OVER_ONE_CALL else client, index)) for index in range(STREAMS)
        ]
        for _ in range(STREAMS):
            await asyncio.wait_for(begun.acquire(), 60)
        assert done == 0
        sent_s = time.monotonic()
        server.terminate()
        assert (await watch.read()).status == NOT_SERVING
        heard_s = time.monotonic() - sent_s
        with pytest.raises(ServerError, match="UNAVAILABLE: the server is stopping"):
            await client.generate("too late")
        return heard_s, await asyncio.gather(*asked)


def test_sigterm_with_200_live_streams_loses_nothing(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    heard_s: list[float] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    timeline = tmp_path / "trace.json"
    flags = ("--engine=fake", "--fake_step_s=0.02", f"--max_rows={STREAMS}", f"--encode_batch={STREAMS}")
    for _ in range(20 if full else 2):
        with server_process(tiny_model, *flags, f"--timeline={timeline}") as server:
            after_s, tokens = asyncio.run(drained_under_load(server))
            status, out, _ = server.finish()
        assert status == 0
        assert out.splitlines()[-1] == "stopped"
        assert "cutting" not in out
        assert {len(each) for each in tokens} == {TOKENS}
        assert json.loads(timeline.read_text())["traceEvents"]
        heard_s.append(after_s)
        seen.add(tuple(tokens))
    # None is doubled or exchanged either: every run gave the same tokens.
    assert len(seen) == 1
    print(f"NOT_SERVING after {statistics.median(heard_s):.4f} s, at most {max(heard_s):.4f} s, of {len(heard_s)} runs")
    # On a machine that does other things too; the goal of 0.1 s is for the median of the full count.
    assert statistics.median(heard_s) < (0.1 if full else 2.0)


def test_drain_ends_in_time_and_tells_the_rest(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.05", "--drain_s=0.3") as server:
        client = Client(server.address)
        stream = client.stream("long", max_tokens=200, ignore_eos=True)
        next(stream)
        server.terminate()
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            list(stream)
        status, out, _ = server.finish()
        assert status == 0
        assert "cutting 1 requests short" in out


def test_a_second_signal_does_not_wait(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.2", "--drain_s=600") as server:
        client = Client(server.address)
        stream = client.stream("long", max_tokens=200, ignore_eos=True)
        next(stream)
        server.terminate()
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            list(stream)
        assert server.finish()[0] == 0


def test_probes_see_it_settle_while_requests_are_still_taken(tiny_model: Path) -> None:
    """Before they are refused, whoever spreads the load has time to look elsewhere."""
    flags = ("--engine=fake", "--settle_s=600", "--health_address=127.0.0.1:0")
    with server_process(tiny_model, *flags) as server, Client(server.address) as client:
        assert client.generate("x", max_tokens=2).finish.completion_tokens > 0
        with grpc.insecure_channel(server.address_of("health")) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            server.terminate()
            assert next(watch).status == NOT_SERVING
            reply: Reply = client.generate("x", max_tokens=2)
            assert reply.finish.completion_tokens > 0
            with pytest.raises(grpc.RpcError, match="Method not found"):
                channel.unary_unary("/exegpt.v1.Generation/Generate")(b"")
        server.terminate()
        status, out, _ = server.finish()
    assert status == 0
    assert "settling for 600 s" in out
