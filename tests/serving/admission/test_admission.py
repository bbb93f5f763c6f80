"""Admission on a live server over the fake engine: predictions beside what was measured, refusals, order."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.admission.budget import QueueLimits
from serving.client import AsyncClient, AsyncSession, Client, Reply, ServerError, make_request
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc
from serving.server import ServerOptions
from serving.telemetry.tally import Ended
from solver.plan.prediction import Prediction
from tests.serving.servers import RunningServer, fake_service, running_server

ROWS, ENCODE_BATCH, ITERATIONS, STEP_S = 8, 4, 8, 0.004
PERIOD_S = ITERATIONS * STEP_S
SHAPE = {"max_rows": ROWS, "encode_batch": ENCODE_BATCH, "decode_iterations": ITERATIONS, "fake_step_s": STEP_S}


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "still not so"
        time.sleep(0.01)


def watched(server: RunningServer) -> dict[str, Ended]:
    """Every request that ends from here on, by its id."""
    found: dict[str, Ended] = {}
    server.call(server.frontend.on_ended.append, lambda ended: found.setdefault(ended.request_id, ended))
    return found


def asked(address: str, tokens: dict[str, int], key: str | None = None, **parameters: object) -> dict[str, object]:
    """All at once over one call; the reply, or the error, of each."""

    async def one(session: AsyncSession, name: str) -> Reply | ServerError:
        try:
            given = {"max_tokens": tokens[name], "ignore_eos": True, **parameters}
            return await session.generate([5, 6, 7], request_id=name, **given)  # type: ignore[arg-type]
        except ServerError as error:
            return error

    async def all_of_them() -> list[Reply | ServerError]:
        async with AsyncClient(address, key=key, retries=False) as client, client.session() as session:
            return await asyncio.gather(*(one(session, name) for name in tokens))

    return dict(zip(tokens, asyncio.run(all_of_them()), strict=True))


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """Warm: it knows how long its phases take."""
    with running_server(fake_service(tiny_model, **SHAPE), max_requests=1000) as running:
        assert all(
            isinstance(reply, Reply) for reply in asked(running.address, {f"warm{n}": 33 for n in range(16)}).values()
        )
        yield running


def test_another_plan_in_force_sets_limits_and_pace(tiny_model: Path) -> None:
    service = fake_service(tiny_model, **SHAPE)
    with running_server(service, max_requests=1000) as running:
        gate, runner = running.frontend.gate, running.runner
        before = gate.limits
        prediction = Prediction(throughput_rps=1.0, latency_s=9.0, encode_s=1.0, iteration_s=1.0, period_s=9.0)
        fewer = runner.plan.cache_tokens - 8
        buckets = dataclasses.replace(runner.plan.buckets, cache_tokens=(*runner.plan.buckets.cache_tokens[:-1], fewer))
        runner.plan = dataclasses.replace(runner.plan, cache_tokens=fewer, buckets=buckets, prediction=prediction)
        running.call(gate.follow)
        assert gate.pace is not None
        assert (gate.pace.predicted_s, gate.pace.period_s.value) == (9.0, 9.0)
        assert gate.limits.tokens < before.tokens


def test_predicted_beside_measured(server: RunningServer) -> None:
    """A burst of answers of many lengths: the queue in front of the last is ten times the engine's rows."""
    found, known_s = watched(server), server.frontend.gate.pace.period_s.value
    asked(server.address, {f"burst{n}": 17 + 8 * (n % 5) for n in range(80)})
    until(lambda: len([name for name in found if name.startswith("burst")]) == 80)
    ended = [found[f"burst{n}"] for n in range(80)]
    waits = [each.encode_start_s - each.arrival_s for each in ended]
    start_errors = [each.predicted_start_s - each.encode_start_s for each in ended]
    end_errors = [each.predicted_end_s - each.last_token_s for each in ended]
    whole = [each.last_token_s - each.arrival_s for each in ended]
    then_s = server.frontend.gate.pace.period_s.value
    print(f"waits up to {max(waits):.2f} s; periods of {known_s:.3f} s, then {then_s:.3f} s; predicted - measured:")
    for errors in (start_errors, end_errors):
        print(f"  median {statistics.median(errors):+.3f} s, from {min(errors):+.3f} s to {max(errors):+.3f} s")
    assert max(waits) > 10 * PERIOD_S
    # A phase takes longer than its steps where the machine does other things; the prediction follows that with delay.
    assert statistics.median(abs(error) / took for error, took in zip(end_errors, whole, strict=True)) < 0.3


def test_an_unreachable_deadline_is_refused_at_once_with_the_time_it_would_take(server: RunningServer) -> None:
    stub = pb_grpc.GenerationStub(grpc.insecure_channel(server.address))
    waited_s = []
    for _ in range(20):
        # 31 phases.
        request = make_request([5, 6, 7], max_tokens=249, ignore_eos=True)
        begun_s = time.monotonic()
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(request, timeout=0.7))
        waited_s.append(time.monotonic() - begun_s)
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if "cannot be met" in refusal.value.details():
            break
    print(f"refused after {statistics.median(waited_s) * 1e3:.1f} ms")
    assert "the deadline cannot be met: the answer would take about " in refusal.value.details()
    trailers = dict(refusal.value.trailing_metadata())
    assert "grpc-retry-pushback-ms" not in trailers
    status = rpc_status.from_call(refusal.value)
    info = error_details_pb2.ErrorInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("DEADLINE_UNREACHABLE", "exegpt")
    assert float(info.metadata["needed_s"]) >= 31 * PERIOD_S * 0.9
    # Trailers only: no header came before them.
    assert not [key for key, _ in refusal.value.initial_metadata() or () if key.startswith("x-")]
    # On a machine that does other things too, still long before the deadline.
    assert waited_s[-1] < 0.6
    until(lambda: server.frontend.admitted == 0)
    with Client(server.address) as client:
        assert len(client.generate([5, 6, 7], max_tokens=249, ignore_eos=True, timeout_s=60).token_ids) == 249


def test_a_deadline_that_looked_reachable_ends_the_request_wherever_it_is(tiny_model: Path) -> None:
    """Nothing was measured yet, so nobody is refused for a prediction."""
    with running_server(fake_service(tiny_model, **{**SHAPE, "fake_step_s": 0.05}), max_requests=100) as slow:
        tokens = {f"r{n}": 250 for n in range(40)}

        async def all_of_them() -> list[object]:
            async with AsyncClient(slow.address) as client, client.session() as session:
                calls = [
                    session.generate([5], request_id=name, timeout_s=1.0, max_tokens=250, ignore_eos=True)
                    for name in tokens
                ]
                return await asyncio.gather(*calls, return_exceptions=True)

        errors = [str(each) for each in asyncio.run(all_of_them())]
        assert all(error.startswith("DEADLINE_EXCEEDED: ") for error in errors)
        assert any("passed" in error for error in errors)
        until(lambda: slow.frontend.admitted == 0 and slow.runner.stats().running == slow.runner.stats().waiting == 0)
        # Those that waited in the front end never came to the engine.
        assert slow.runner.stats().finished < 40
        assert slow.frontend.gate.held.tokens == slow.frontend.gate.waiting == 0


def test_whoever_gives_up_while_waiting_costs_the_engine_nothing(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, **{**SHAPE, "fake_step_s": 0.02}), max_requests=200) as slow:

        async def ask_and_leave() -> None:
            async with AsyncClient(slow.address) as client, client.session() as session:
                asking = [
                    asyncio.create_task(session.generate([6], max_tokens=250, ignore_eos=True))
                    for _ in range(ROWS + 60)
                ]
                while slow.frontend.admitted < ROWS + 60:
                    await asyncio.sleep(0.005)
                assert slow.frontend.gate.waiting >= 60 - 4 * ENCODE_BATCH
                assert slow.frontend.gate.held.tokens == slow.frontend.gate.waiting * 251
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

        asyncio.run(ask_and_leave())
        until(lambda: slow.frontend.admitted == 0)
        until(lambda: slow.runner.stats().running == slow.runner.stats().waiting == 0)
        assert slow.runner.stats().finished <= ROWS + 4 * ENCODE_BATCH
        assert slow.frontend.gate.held.tokens == slow.frontend.gate.held.bytes == 0


def test_lower_priorities_go_earlier(server: RunningServer) -> None:
    found = watched(server)

    async def run() -> None:
        async with AsyncClient(server.address) as client, client.session() as session:
            plain = [
                asyncio.create_task(session.generate([5], request_id=f"plain{n}", max_tokens=33, ignore_eos=True))
                for n in range(60)
            ]
            while server.frontend.gate.waiting < 30:
                await asyncio.sleep(0.005)
            later = session.generate([5], request_id="later", max_tokens=3, ignore_eos=True, priority=9)
            urgent = session.generate([5], request_id="urgent", max_tokens=3, ignore_eos=True, priority=-5)
            await asyncio.gather(later, urgent, *plain)

    asyncio.run(run())
    until(lambda: {"urgent", "later"} <= found.keys() and len(found) >= 62)
    starts = sorted(found.values(), key=lambda each: each.encode_start_s)
    order = [each.request_id for each in starts]
    behind = [name for name in order[order.index("urgent") + 1 :] if name.startswith("plain")]
    # All but those that the engine had already.
    assert len(behind) >= 30 - 4 * ENCODE_BATCH
    # Every eighth is whoever has waited longest, so the last in rank is among the last and no more.
    assert order.index("later") > order.index("urgent") + len(behind) // 2


@pytest.mark.parametrize("priority", ["high", 2**31, True, 1.5])
def test_priorities_that_are_none_are_refused(server: RunningServer, priority: object) -> None:
    async def ask() -> None:
        await server.frontend.begin({"prompt": [5], "priority": priority}, None, lambda: None)

    with pytest.raises(ValueError, match=r"priority: .* is not an integer of 32 bits; lower is earlier"):
        asyncio.run_coroutine_threadsafe(ask(), server.loop).result(10)
    until(lambda: server.frontend.admitted == 0)


KEYS = {"flood": "k-flood-0123456789", "quiet": "k-quiet-0123456789"}


def test_two_keys_share_by_tokens_whoever_came_first(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("".join(f"{name} client {key}\n" for name, key in KEYS.items()))
    options = ServerOptions("127.0.0.1:0", keys=path)
    with running_server(fake_service(tiny_model, **SHAPE), max_requests=400, options=options) as shared:
        found = watched(shared)
        flood = threading.Thread(
            target=asked, args=(shared.address, {f"flood{n}": 33 for n in range(200)}, KEYS["flood"])
        )
        flood.start()
        until(lambda: shared.frontend.gate.waiting > 100)
        # Answers twice as long: of tokens both get as many, of requests the flood gets twice.
        asked(shared.address, {f"quiet{n}": 70 for n in range(20)}, KEYS["quiet"])
        flood.join()
        until(lambda: len(found) == 220)
    order = [each.request_id for each in sorted(found.values(), key=lambda each: each.encode_start_s)]
    first, last = (order.index(name) for name in ("quiet0", "quiet19"))
    between = [name for name in order[first:last] if name.startswith("flood")]
    print(f"{len(between)} of the flood between the first and the last of 20 of the other, twice as long")
    assert 20 <= len(between) <= 60
    # It waited for no more than what the engine had, not for the flood that was there before.
    assert len(order) - last > 50


@pytest.mark.parametrize(
    ("queue", "reason"),
    [(QueueLimits(tokens=600), "QUEUE_TOKENS_FULL"), (QueueLimits(bytes=200_000), "QUEUE_BYTES_FULL")],
)
def test_the_queue_is_bounded_and_says_when_to_come_again(tiny_model: Path, queue: QueueLimits, reason: str) -> None:
    options = dataclasses.replace(ServerOptions("127.0.0.1:0"), queue=queue)
    with running_server(fake_service(tiny_model, **SHAPE), max_requests=500, options=options) as small:
        asked(small.address, {"warm": 33})
        replies = asked(small.address, {f"r{n}": 100 for n in range(100)})
        refused = [each for each in replies.values() if isinstance(each, ServerError)]
        answered = [each for each in replies.values() if isinstance(each, Reply)]
        assert len(refused) + len(answered) == 100
        assert len(answered) >= ROWS
        assert {error.code for error in refused} == {"UNAVAILABLE"}
        assert small.frontend.tally.refusals[reason] == len(refused) > 20
        assert small.frontend.gate.held.tokens == 0

        stub = pb_grpc.GenerationStub(grpc.insecure_channel(small.address))
        if reason == "QUEUE_TOKENS_FULL":
            small.call(
                setattr, small.frontend.gate, "limits", dataclasses.replace(small.frontend.gate.limits, tokens=100)
            )
            with pytest.raises(grpc.RpcError, match=r"max_tokens: prompt and answer may come to 103 tokens") as refusal:
                list(stub.Generate(make_request([5, 6, 7], max_tokens=100)))
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_full_queue_pushes_back_until_the_predicted_start(server: RunningServer) -> None:
    stub = pb_grpc.GenerationStub(grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]))
    flood = threading.Thread(target=asked, args=(server.address, {f"full{n}": 65 for n in range(120)}))
    flood.start()
    until(lambda: server.frontend.gate.waiting > 80)
    server.call(setattr, server.frontend, "max_requests", 0)
    try:
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(make_request("x")))
    finally:
        server.call(setattr, server.frontend, "max_requests", 1000)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    pushback_s = int(dict(refusal.value.trailing_metadata())["grpc-retry-pushback-ms"]) / 1000
    # 80 answers of 8 phases over 8 rows.
    assert pushback_s > 80 / ROWS * 8 * PERIOD_S / 2
    status = rpc_status.from_call(refusal.value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.ToMilliseconds()) == ("QUEUE_FULL", round(pushback_s * 1000))
    flood.join()


def test_a_drain_answers_whoever_waits_and_then_the_rest_hear_of_the_end(tiny_model: Path) -> None:
    with running_server(fake_service(tiny_model, **SHAPE), max_requests=500) as ending:
        replies: dict[str, object] = {}
        asking = threading.Thread(
            target=lambda: replies.update(asked(ending.address, {f"r{n}": 33 for n in range(100)}))
        )
        asking.start()
        until(lambda: ending.frontend.admitted == 100)
        assert ending.frontend.gate.waiting > 40
        drained = asyncio.run_coroutine_threadsafe(ending.frontend.drain(120), ending.loop).result(130)
        asking.join()
        assert drained
        assert all(isinstance(reply, Reply) and len(reply.token_ids) == 33 for reply in replies.values())
    with running_server(fake_service(tiny_model, **{**SHAPE, "fake_step_s": 0.05}), max_requests=500) as ending:
        asking = threading.Thread(
            target=lambda: replies.update(asked(ending.address, {f"r{n}": 250 for n in range(100)}))
        )
        asking.start()
        until(lambda: ending.frontend.admitted == 100)
        assert ending.frontend.gate.waiting > 40
        assert not ending.drain()
        ending.call(ending.frontend.cut_short)
        until(lambda: ending.frontend.admitted <= ROWS + 4 * ENCODE_BATCH)
        ending.runner.stop()
        asking.join()
        assert {str(reply) for reply in replies.values()} == {"UNAVAILABLE: the server is stopping; try again"}
