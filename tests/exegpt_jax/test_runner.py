"""The Runner over the hand-computable executor: every request gets exactly its tokens, whatever happens around it."""

from __future__ import annotations

import collections
import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.engine.api import EngineError, Sampling
from exegpt_jax.runner import policies
from exegpt_jax.runner.events import Event, Times
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing import fake
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.plan.schedule import FLAG_POLICIES
from tests.exegpt_jax.runner_bench import VOCAB, Bench, plan_of, prompts, run_at_random


@given(st.data())
def test_every_request_gets_its_tokens(data: st.DataObject) -> None:
    policy = data.draw(st.sampled_from(FLAG_POLICIES))
    plan = plan_of(
        policy,
        encode_batch=data.draw(st.integers(1, 9)),
        iterations=data.draw(st.integers(1, 17)) if policy in ("rra", "static") else 1,
        rows=data.draw(st.integers(1, 20)),
        budget=data.draw(st.integers(1, 60)),
    )
    rungs = data.draw(st.sets(st.integers(1, 127), max_size=12))
    plan = dataclasses.replace(plan, buckets=dataclasses.replace(plan.buckets, cache_tokens=(*sorted(rungs), 128)))
    run_at_random(Bench(plan), random.Random(data.draw(st.integers(0, 2**32))))


@pytest.mark.parametrize("policy", FLAG_POLICIES)
def test_prompts_longer_than_the_largest_bucket_go_in_chunks(policy: str) -> None:
    plan = plan_of(policy, cache_tokens=2048, prompt_tokens=1500, budget=300, iterations=1)
    bench = Bench(plan)
    requests = [bench.ask(f"r{i}", p, 20) for i, p in enumerate([(7,) * 1500, (5,) * 3, (9,) * 513, (2,) * 512])]
    bench.run()
    bench.check(requests)
    calls = [call for command in bench.commands for call in command.encode]
    assert any(call.context_bucket for call in calls)
    if policy == "chunked":
        for command in bench.commands:
            prompt_tokens = sum(len(row.token_ids) for call in command.encode for row in call.rows)
            assert prompt_tokens <= 300


def test_ten_thousand_requests_with_random_cancels_leave_nothing() -> None:
    bench = Bench(plan_of("rra", encode_batch=32, rows=128, iterations=8))
    rng = random.Random(1)
    requests = []
    for number, prompt in enumerate(prompts(2, 10_000, 30)):
        requests.append(bench.ask(f"r{number}", prompt, rng.randint(1, 60)))
        if rng.random() < 0.3:
            bench.runner.cancel(rng.choice(requests[-200:]).id)
        if number % 40 == 0:
            bench.runner.run_phase()
    bench.run()
    assert len(bench.finished) == 10_000
    assert {end.reason for end in bench.finished.values()} == {"stop", "length", "abort"}
    bench.check(requests)


def test_a_failing_phase_costs_its_requests_and_the_loop_goes_on() -> None:
    bench = Bench(plan_of("rra"), fails=lambda command: command.phase in (2, 5))
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(3, 60, 20))]
    bench.run()
    bench.check(requests, failed_phases=2)
    reasons = collections.Counter(end.reason for end in bench.finished.values())
    assert 0 < reasons["error"] < 60
    assert all("as asked" in end.detail for end in bench.finished.values() if end.reason == "error")


def test_static_never_refills_and_rra_holds_its_batch() -> None:
    lengths = random.Random(4)
    for policy in ("static", "rra"):
        plan = plan_of(policy, encode_batch=4, iterations=4, rows=32, decode_batch=16)
        bench = Bench(plan)
        hidden = HiddenLengths(bench.executor, lambda row: lengths.randint(1, 30))
        bench.runner = Runner(plan, hidden, bench.hear, clock=bench.clock)
        for number in range(300):
            bench.runner.submit(Request(f"r{number}", (1, 2), Sampling(max_tokens=60)))
        bench.run()
        assert len(bench.finished) == 300
        assert {end.reason for end in bench.finished.values()} == {"stop"}
        decoded = [entry for entry in bench.runner.timeline if entry.kind == "decode"]
        encoded = [entry for entry in bench.runner.timeline if entry.kind == "encode"]
        if policy == "static":
            assert len(encoded) == 300 // 4
            assert all(entry.rows == 4 for entry in encoded)
            # Ended rows stay in the batch until the longest has ended.
            assert {entry.rows_bucket for entry in decoded} == {4}
        else:
            steady = decoded[5:-8]
            assert 14 <= sum(entry.rows for entry in steady) / len(steady) <= 18
            assert all(entry.rows <= 8 for entry in encoded)


def test_rows_are_packed_into_the_smallest_bucket() -> None:
    plan = plan_of("rra", encode_batch=16, rows=32, iterations=2)
    bench = Bench(plan)
    requests = [bench.ask(f"r{i}", (i, i + 1), 4 if i % 8 else 60) for i in range(32)]
    bench.run()
    bench.check(requests)
    assert any(command.moves for command in bench.commands)
    last = [command.decode for command in bench.commands if command.decode][-1]
    assert last.rows_bucket == plan.buckets.decode_rows[0]


def test_a_resumed_request_goes_on_where_it_stopped() -> None:
    bench = Bench(plan_of("rra"))
    sampling = Sampling(max_tokens=30)
    whole = fake.answer((5, 6), sampling, VOCAB)
    request = Request("r", (5, 6), sampling, generated_ids=whole[:7])
    bench.runner.submit(request)
    bench.run()
    bench.check([request])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt_ids": ()}, "prompt: empty"),
        ({"prompt_ids": (1,) * 61}, "prompt: 61 tokens exceed the limit of 60"),
        ({"sampling": Sampling(max_tokens=127)}, "max_tokens: 127 and a prompt of 2 tokens exceed 128"),
        ({"generated_ids": (1, 2), "sampling": Sampling(max_tokens=2)}, "max_tokens: 2 were generated already"),
        ({"generated_ids": (1,) * 59, "sampling": Sampling(max_tokens=99)}, "generated_ids: 59 behind a prompt of 2"),
        ({"sampling": Sampling(max_tokens=2, stop_ids=tuple(range(17)))}, "stop_ids: 17 entries exceed 16"),
        ({"sampling": Sampling(max_tokens=2, logprobs=21)}, "logprobs: 21 is out of range"),
    ],
)
def test_what_can_never_run_is_refused_by_name(change: dict, complaint: str) -> None:
    bench = Bench(plan_of("rra"))
    request = dataclasses.replace(Request("r", (1, 2), Sampling(max_tokens=5)), **change)
    with pytest.raises(ValueError, match=complaint):
        bench.runner.submit(request)


def test_live_ids_are_unique_and_free_again_after_the_end() -> None:
    bench = Bench(plan_of("rra"))
    first = bench.ask("r", (1,), 5)
    with pytest.raises(ValueError, match="'r' is already running"):
        bench.ask("r", (1,), 5)
    bench.run()
    bench.check([first])
    bench.finished.clear()
    bench.tokens.clear()
    second = bench.ask("r", (2,), 5)
    bench.run()
    bench.check([second])


def test_on_its_own_thread_it_drains_and_stops() -> None:
    bench = Bench(plan_of("rra"), step_s=0.0005)
    bench.runner.start()
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(5, 50, 20))]
    assert bench.runner.drain(timeout_s=30)
    bench.ask("late", (1, 2), 60)
    bench.runner.stop()
    assert bench.finished["late"].reason in ("abort", "length", "stop")
    with pytest.raises(ValueError, match="stopping"):
        bench.ask("later", (1, 2), 60)
    for request in requests:
        assert tuple(bench.tokens[request.id]) == fake.answer(request.prompt_ids, request.sampling, VOCAB)


def test_stopping_frees_what_was_under_way() -> None:
    bench = Bench(plan_of("rra"))
    requests = [bench.ask(f"r{i}", p, 68) for i, p in enumerate(prompts(7, 30, 20))]
    bench.runner.run_phase()
    bench.runner.stop()
    assert "abort" in {end.reason for end in bench.finished.values()}
    bench.check(requests)


def test_a_listener_that_fails_costs_nobody_else() -> None:
    bench = Bench(plan_of("rra"))
    heard = bench.runner._on_events

    def hear(events: list[Event]) -> None:
        heard(events)
        raise RuntimeError("the listener is ill")

    bench.runner._on_events = hear
    requests = [bench.ask(f"r{i}", p, 20) for i, p in enumerate(prompts(8, 30, 20))]
    bench.run()
    assert len(bench.finished) == 30
    bench.check(requests)


def test_an_executor_that_cannot_be_reset_answers_everybody_with_an_error() -> None:
    bench = Bench(plan_of("rra"), fails=lambda command: command.phase == 2)

    def reset() -> None:
        raise EngineError("the device is gone")

    bench.executor.reset = reset  # type: ignore[method-assign]
    for index, prompt in enumerate(prompts(9, 60, 20)):
        bench.ask(f"r{index}", prompt, 60)
    bench.run()
    assert len(bench.finished) == 60
    assert bench.finished["r59"].reason == "error"
    assert "the device is gone" in bench.finished["r59"].detail
    assert bench.runner.stats().broken
    with pytest.raises(ValueError, match="stopping"):
        bench.ask("late", (1,), 5)


def test_an_encode_phase_is_corrected_within_half_and_twice_its_batch() -> None:
    schedule = plan_of("rra", encode_batch=8, rows=64, decode_batch=32).schedule

    def admits(waiting: int, live: int, free: int = 64) -> int:
        return policies.rra(schedule, policies.View(waiting, 0, live, free)).admit

    assert admits(100, 0) == 16
    assert admits(100, 24) == 8
    assert admits(100, 30) == 4
    assert admits(100, 60) == 4
    assert admits(100, 60, free=2) == 2
    assert admits(1, 0) == 1


def test_times_are_counted_both_ways() -> None:
    times = Times(arrival_s=1.0, encode_start_s=2.0, first_token_s=3.0, last_token_s=7.0)
    assert (times.latency_s, times.latency_with_wait_s) == (5.0, 6.0)
    assert (times.ttft_s, times.ttft_with_wait_s) == (1.0, 2.0)
    assert (times.tpot_s(5), times.tpot_s(1)) == (1.0, 0.0)


def test_the_timeline_adds_up_and_opens_as_a_trace() -> None:
    bench = Bench(plan_of("rra"))
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(6, 50, 20))]
    bench.run()
    bench.check(requests)
    entries = list(bench.runner.timeline)
    assert all(entry.dispatched_s <= entry.ready_s for entry in entries)
    encoded = [entry for entry in entries if entry.kind == "encode"]
    assert sum(entry.tokens for entry in encoded) == sum(len(request.prompt_ids) for request in requests)
    generated = sum(entry.tokens for entry in entries if entry.kind == "decode") + sum(entry.rows for entry in encoded)
    assert generated == sum(map(len, bench.tokens.values())) == bench.runner.stats().generated_tokens
    trace = json.loads(bench.runner.timeline.to_chrome_trace())["traceEvents"]
    spans = [event for event in trace if event["ph"] == "X"]
    assert len(spans) == len(entries)
    ends = 0.0
    for span in spans:
        assert span["ts"] >= ends - 1e-6
        assert span["dur"] >= 0
        ends = span["ts"] + span["dur"]
    assert 0 < bench.runner.timeline.busy_share() <= 1
