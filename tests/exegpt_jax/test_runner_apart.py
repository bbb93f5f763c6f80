"""The Runner with encode and decode devices apart, over the hand-computable executor: tokens, buffers, bytes, order."""

from __future__ import annotations

import collections
import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.engine.api import PhaseCommand
from exegpt_jax.runner.follow import Follower
from solver.plan.certificate import Margins
from solver.plan.plan import Plan
from solver.plan.schedule import EXECUTED_POLICIES, StageSpec
from solver.plan.under_way import APART_POLICIES, BUFFERS, most_batches
from tests.exegpt_jax.runner_bench import Bench, plan_of, prompts, run_at_random
from tests.exegpt_jax.test_follow import LONG, SHORT, Drive, again, planned, step


def apart_plan(policy: str = "waa", *, encode_stages: int = 1, parts: int = 1, **options: int) -> Plan:
    """A plan of an imagined model: one layer, held by every encode stage and by the decode stage; m_D parts."""
    stages = [StageSpec("encode", (0, 1), (index,), 1) for index in range(encode_stages)]
    stages.append(StageSpec("decode", (0, 1), (encode_stages,), 1))
    plan = plan_of("rra", **options)
    micro_batch = -(-plan.schedule.decode_batch // parts)
    schedule = dataclasses.replace(plan.schedule, policy=policy, stages=tuple(stages), micro_batch=micro_batch)  # type: ignore[arg-type]
    return dataclasses.replace(plan, schedule=schedule)


@given(st.data())
def test_every_request_gets_its_tokens(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    plan = apart_plan(
        data.draw(st.sampled_from([policy for policy in APART_POLICIES if policy in EXECUTED_POLICIES])),
        encode_stages=data.draw(st.integers(1, 3)),
        parts=data.draw(st.integers(1, 4)),
        encode_batch=data.draw(st.integers(1, 9)),
        iterations=data.draw(st.integers(1, 17)),
        rows=data.draw(st.integers(1, 20)),
    )
    late = data.draw(st.sampled_from([0.0, 0.3, 0.8]))
    buffer_bytes = data.draw(st.sampled_from([1, 100, 500, 2**62]))
    bench = Bench(plan, late=lambda: rng.random() < late, buffer_bytes=buffer_bytes)
    run_at_random(bench, rng)


def test_rows_move_while_every_micro_batch_is_under_way() -> None:
    moved = 0
    for seed in range(6):
        rng = random.Random(seed)
        bench = Bench(apart_plan(parts=3, rows=8), late=lambda rng=rng: rng.random() < 0.5)
        run_at_random(bench, rng)
        moved += sum(bool(command.moves) and command.decode is None for command in bench.commands)
    assert moved > 0


def test_a_phase_encodes_or_decodes_and_the_timeline_names_the_side() -> None:
    plan = apart_plan(encode_stages=2)
    bench = Bench(plan)
    requests = [bench.ask(f"r{i}", p, 30) for i, p in enumerate(prompts(1, 60, 30))]
    bench.run()
    bench.check(requests)
    for command in bench.commands:
        assert not (command.encode and (command.decode or command.insert or command.release or command.moves))
        assert command.decode is None or command.decode.iterations == 1
    roles = collections.defaultdict(set)
    for entry in bench.runner.timeline:
        roles[entry.kind].add(plan.schedule.stages[entry.stage].role)
    assert roles == {"encode": {"encode"}, "decode": {"decode"}}
    numbers = [command.phase for command in bench.commands]
    assert numbers == list(range(len(numbers)))


def test_micro_batches_are_under_way_side_by_side() -> None:
    bench = Bench(apart_plan(parts=3, rows=12))
    requests = [bench.ask(f"r{i}", p, 30) for i, p in enumerate(prompts(1, 60, 30))]
    parts: list[int | None] = []
    unread: set[int] = set()
    ahead: list[int] = []
    dispatch = bench.executor.dispatch

    def noted(command: PhaseCommand) -> object:
        pending = dispatch(command)
        if command.decode is None:
            return pending
        parts.append(command.decode.part)
        unread.add(command.phase)
        decoded = pending.decoded

        def read() -> object:
            assert command.phase == min(unread), "the oldest is read first"
            ahead.append(len(unread))
            unread.remove(command.phase)
            return decoded()

        object.__setattr__(pending, "decoded", read)
        return pending

    bench.executor.dispatch = noted  # type: ignore[assignment, method-assign]
    bench.run()
    bench.check(requests)
    assert not unread
    assert set(ahead[6:60]) == {3}
    assert parts[6:60] == [0, 1, 2] * 18


def under_way(commands: list[PhaseCommand]) -> list[int]:
    """After each command, how many batches have rows that are neither inserted nor dropped."""
    batch_of: dict[int, int] = {}
    counts = []
    for command in commands:
        for request in (*command.drop, *(request for request, _ in command.insert)):
            batch_of.pop(request, None)
        batch_of |= {row.request: command.phase for call in command.encode for row in call.rows}
        counts.append(len(set(batch_of.values())))
    return counts


@pytest.mark.parametrize("encode_stages", [1, 2])
def test_encode_runs_ahead_by_a_double_buffer_and_no_further(encode_stages: int) -> None:
    # Few rows, which stay long: whatever is encoded waits.
    bench = Bench(apart_plan(encode_stages=encode_stages, encode_batch=2, rows=4))
    requests = [bench.ask(f"r{i}", (1, 2, i), 40) for i in range(40)]
    bench.run()
    bench.check(requests)
    assert max(under_way(bench.commands)) == most_batches(encode_stages) == BUFFERS + encode_stages


@pytest.mark.parametrize(("budget", "most"), [(1, 1), (200, 3), (10_000, 3)])
def test_bytes_under_way_hold_encode_back(budget: int, most: int) -> None:
    bench = Bench(apart_plan(encode_batch=4, rows=4), buffer_bytes=budget)
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(2, 60, 60))]
    seen = []
    while bench.runner.run_phase():
        held = bench.executor.under_way_bytes()
        seen.append((sum(held.values()), len(held)))
    bench.check(requests)
    # Alone, a batch may be as large as it must; the executor refuses anything else, which would fail a phase.
    assert all(held <= budget or batches == 1 for held, batches in seen)
    assert max(batches for _, batches in seen) == most
    assert max(held for held, _ in seen) > min(budget, 200) / 2


def test_encode_is_dispatched_before_decode_has_let_the_batch_before_in() -> None:
    bench = Bench(apart_plan(encode_batch=4, rows=12, decode_batch=8))
    requests = [bench.ask(f"r{i}", (3, i), 30) for i in range(80)]
    bench.run()
    bench.check(requests)
    encodes = [command.phase for command in bench.commands if command.encode]
    inserts = {request: command.phase for command in bench.commands for request, _ in command.insert}
    first = [call.rows[0].request for command in bench.commands for call in command.encode[:1]]
    ahead = [encodes[i + 1] < inserts[first[i]] for i in range(len(encodes) - 1) if first[i] in inserts]
    assert sum(ahead) > len(ahead) / 2


def test_prompts_longer_than_the_largest_bucket_go_in_chunks() -> None:
    bench = Bench(apart_plan(cache_tokens=2048, prompt_tokens=1500, iterations=1))
    requests = [bench.ask(f"r{i}", p, 20) for i, p in enumerate([(7,) * 1500, (5,) * 3, (9,) * 513, (2,) * 512])]
    bench.run()
    bench.check(requests)
    assert any(call.context_bucket for command in bench.commands for call in command.encode)


def test_a_failing_phase_costs_its_requests_and_the_loop_goes_on() -> None:
    bench = Bench(apart_plan(), fails=lambda command: command.phase in (2, 9))
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(3, 60, 20))]
    bench.run()
    bench.check(requests, failed_phases=2)
    reasons = collections.Counter(end.reason for end in bench.finished.values())
    assert 0 < reasons["error"] < 60


def test_an_idle_decode_side_waits_for_what_is_under_way() -> None:
    """Polls say "not yet"; the loop must block instead of spinning, first for tokens, then for the payload."""
    waits = [True]
    bench = Bench(apart_plan(), late=lambda: waits[0])
    request = bench.ask("r", (1, 2), 9)
    assert bench.runner.run_phase()
    assert bench.tokens["r"]
    assert bench.runner.run_phase()
    waits[0] = False
    bench.run()
    bench.check([request])


def test_stopping_frees_what_was_under_way() -> None:
    bench = Bench(apart_plan(encode_batch=2, rows=4))
    requests = [bench.ask(f"r{i}", p, 68) for i, p in enumerate(prompts(7, 30, 20))]
    for _ in range(3):
        bench.runner.run_phase()
    bench.runner.stop()
    assert "abort" in {end.reason for end in bench.finished.values()}
    bench.check(requests)


def test_on_its_own_thread_it_drains() -> None:
    bench = Bench(apart_plan(), step_s=0.0005)
    bench.runner.start()
    requests = [bench.ask(f"r{i}", p, 40) for i, p in enumerate(prompts(5, 50, 20))]
    assert bench.runner.drain(timeout_s=30)
    bench.runner.stop()
    bench.check(requests)


@pytest.mark.parametrize(("before", "after"), [("rra", "waa"), ("waa", "rra"), ("waa-c", "waa-m")])
def test_sides_come_apart_and_together_while_requests_run(before: str, after: str) -> None:
    """Traffic leaves the margins; the plan that takes over stands on stages of the other kind, after draining."""
    first, second = on_sides(planned(), before), on_sides(planned(batch=3), after)
    margins = Margins(0.0, -0.2, 0.3, 0.8 * LONG, 1.3 * LONG, 1e-3, (), 15.0, -0.9, 3.0)
    second = dataclasses.replace(second, margins=margins)
    follower = Follower(first, replan=again(second, [], carries=False))
    drive = Drive(first, step(300, SHORT, LONG), follower, 900)
    drive.check()
    assert [len(drive.records(event)) for event in ("ask", "planned", "swap")] == [1, 1, 1]
    assert drive.runner.plan is second
    stages = {entry.stage for entry in drive.runner.timeline if entry.kind == "decode"}
    assert stages == {0 if policy == "rra" else 1 for policy in (before, after)}


def on_sides(plan: Plan, policy: str) -> Plan:
    schedule = plan.schedule if policy == "rra" else apart_plan(policy).schedule
    return dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, policy=policy, stages=schedule.stages))  # type: ignore[arg-type]


def test_sides_that_do_both_are_refused() -> None:
    plan = apart_plan()
    both = dataclasses.replace(plan.schedule, stages=(StageSpec("both", (0, 1), (0,), 1),))
    with pytest.raises(ValueError, match="stages: a policy that works apart needs stages of role encode"):
        Bench(dataclasses.replace(plan, schedule=both))
