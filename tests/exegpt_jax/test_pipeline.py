"""Several stages give the tokens of one, whatever the plan; what ran is read back from the Timeline."""

from __future__ import annotations

import collections
import dataclasses
import random

import jax
import pytest

from exegpt_jax.engine.api import DecodeCall, EncodeCall, EncodeRow, EngineError, PhaseCommand, Sampling
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.models.random import random_stage
from exegpt_jax.runner.entries import stage_entries
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from solver.plan.buckets import Buckets
from solver.plan.correction import corrected_batch
from solver.plan.memory import cache_row_bytes
from solver.plan.micro_batches import allocated_rows, decode_parts, part_rows, place_of
from solver.plan.plan import Plan
from solver.plan.timeline import TimelineEntry
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.random_plans import CACHE_TOKENS, plan_over, random_plans, stage_specs, stages_of
from tests.exegpt_jax.test_runner_engine import Heard
from tests.exegpt_jax.tiny_models import spec_of

SPEC = spec_of("llama")
# Three stages, none like another.
UNEQUAL = plan_over(
    stage_specs([((0, 1), 2), ((1, 2), 1), ((2, 3), 4)]), parts=2, buckets=Buckets((2,), (16,), (6,), (CACHE_TOKENS,))
)
# Two stages and three micro-batches, whose views are copies of their parts until all rows and positions are needed;
# prompts beyond 16 tokens go in chunks.
CUT = plan_over(
    stage_specs([((0, 2), 1), ((2, 3), 2)]),
    parts=3,
    iterations=3,
    buckets=Buckets((3,), (16,), (3, 6), (24, CACHE_TOKENS)),
    prompt_tokens=30,
)


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(random_stage(SPEC, seed=3, scale=2.0), CACHE_TOKENS)


def warm(plan: Plan) -> PipelineExecutor:
    executor = PipelineExecutor(stages_of(plan, SPEC), plan)
    executor.warm_up()
    return executor


@pytest.fixture(scope="module")
def unequal() -> PipelineExecutor:
    return warm(UNEQUAL)


@pytest.fixture(scope="module")
def cut() -> PipelineExecutor:
    return warm(CUT)


def requests_of(rng: random.Random, count: int, plan: Plan) -> list[Request]:
    """As many as there are rows run for as long as there is room, so that every row is used at once."""
    found = []
    for number in range(count):
        endless = number < plan.schedule.max_rows
        prompt = tuple(rng.randrange(53) for _ in range(rng.randint(1, 16 if endless else plan.max_prompt_tokens)))
        room = CACHE_TOKENS - len(prompt)
        sampling = Sampling(
            max_tokens=room if endless else rng.randint(1, room),
            temperature=rng.choice([0.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            seed=number,
            stop_ids=() if endless else tuple(rng.sample(range(53), 2)),
        )
        found.append(Request(f"r{number}", prompt, sampling))
    return found


def run(
    executor: PipelineExecutor, plan: Plan, loop: PlainLoop, rng: random.Random, count: int, cancels: float
) -> Runner:
    """Everybody asks at once; some are cancelled on the way. Answers are checked, and that nothing is left."""
    heard, requests = Heard(), requests_of(rng, count, plan)
    runner = Runner(plan, executor, heard)
    for request in requests:
        runner.submit(request)
    with forbid_compilations():
        while runner.run_phase():
            if rng.random() < cancels:
                runner.cancel(rng.choice(requests[plan.schedule.max_rows :]).id)
    stats = runner.stats()
    assert (stats.waiting, stats.running, stats.live_bytes, stats.failed_phases) == (0, 0, 0, 0)
    assert len(heard.finished) == len(requests)
    answered = [request for request in requests if heard.finished[request.id].reason != "abort"]
    heard.check(answered, loop)
    return runner


def check_plan_was_run(plan: Plan, entries: list[TimelineEntry]) -> None:
    """Stages, degrees, B_E, N_D and B_m, read back from what happened."""
    schedule = plan.schedule
    degrees = {entry.stage: entry.tensor for entry in entries}
    assert [degrees[stage] for stage in sorted(degrees)] == [stage.tensor for stage in schedule.stages]
    encodes = [entry for entry in entries if entry.kind == "encode" and entry.stage == 0]
    decodes = [entry for entry in entries if entry.kind == "decode" and entry.stage == 0]
    first = sum(entry.rows for entry in encodes if entry.phase == encodes[0].phase)
    if schedule.policy == "rra":
        assert first == corrected_batch(schedule, 0, ()) == 2 * schedule.encode_batch
    elif schedule.policy == "static":
        assert first == schedule.encode_batch
    assert max(entry.iteration for entry in decodes) + 1 == schedule.decode_iterations
    assert max(entry.rows_bucket for entry in decodes) == schedule.micro_batch
    parts = collections.defaultdict(set)
    for entry in decodes:
        parts[entry.phase].add(entry.micro_batch)
    if schedule.policy != "static":
        assert max(map(len, parts.values())) == -(-schedule.decode_batch // schedule.micro_batch)
    # Whatever ran on the first stage ran on all of them, in the same order.
    for stage in range(len(schedule.stages)):
        own = [(e.phase, e.kind, e.micro_batch, e.iteration, e.rows) for e in entries if e.stage == stage]
        assert sorted(own) == sorted((e.phase, e.kind, e.micro_batch, e.iteration, e.rows) for e in encodes + decodes)


@pytest.mark.parametrize(
    ("policy", "encode_batch", "iterations"), [("rra", 1, 4), ("rra", 3, 3), ("static", 3, 2), ("iteration", 2, 1)]
)
def test_unequal_stages_give_the_same_tokens(
    unequal: PipelineExecutor, loop: PlainLoop, policy: str, encode_batch: int, iterations: int
) -> None:
    schedule = dataclasses.replace(
        UNEQUAL.schedule, policy=policy, encode_batch=encode_batch, decode_iterations=iterations
    )
    plan = dataclasses.replace(UNEQUAL, schedule=schedule)
    runner = run(unequal, plan, loop, random.Random(iterations), 16, 0.2)
    check_plan_was_run(plan, list(runner.timeline))


@pytest.mark.parametrize("encode_batch", [1, 3])
def test_views_of_some_rows_and_positions_give_the_same_tokens(
    cut: PipelineExecutor, loop: PlainLoop, encode_batch: int
) -> None:
    """Rows are re-packed into fewer slots on every stage, across micro-batches, and their keys and values go along."""
    schedule = dataclasses.replace(CUT.schedule, encode_batch=encode_batch)
    plan = dataclasses.replace(CUT, schedule=schedule)
    runner = run(cut, plan, loop, random.Random(encode_batch), 24, 0.3)
    # Alone: few rows, on few positions and then on many.
    runner.submit(Request("last", (3,), Sampling(max_tokens=40)))
    while runner.run_phase():
        pass
    shapes = {(entry.rows_bucket, entry.tokens_bucket) for entry in runner.timeline if entry.kind == "decode"}
    assert shapes == {(1, 24), (1, 48), (2, 48)}


def test_a_micro_batch_of_which_nobody_is_left_is_dispatched_no_more(cut: PipelineExecutor) -> None:
    cut.reset()
    ends = [2, 23]
    rows = tuple(EncodeRow(n, (n, 3), 0, n, Sampling(max_tokens=ends[n], temperature=0.8, seed=n)) for n in (0, 1))
    command = PhaseCommand(0, encode=(EncodeCall(rows, 3, 16),), decode=DecodeCall(22, 6, CACHE_TOKENS))
    block = cut.dispatch(command).decoded()
    assert block is not None
    assert block.counts.sum(axis=0).tolist() == [1, 22, 0, 0, 0, 0]
    assert block.done.all()
    passes = collections.Counter(work.micro_batch for work in block.work if work.stage == 0)
    assert passes[1] == 22
    # As far ahead as the window reaches, and no farther.
    assert passes[0] <= 1 + 8
    assert 2 not in passes
    cut.dispatch(PhaseCommand(1, release=(0, 1)))
    assert cut.live_bytes() == 0


def test_bytes_are_those_of_the_fullest_stage_and_a_reset_frees_them(unequal: PipelineExecutor) -> None:
    unequal.reset()
    row = EncodeRow(7, (1, 2, 3), 0, 5, Sampling(max_tokens=5))
    assert unequal.dispatch(PhaseCommand(0, encode=(EncodeCall((row,), 2, 16),))).encoded()[0].tokens.shape == (1, 1)
    bytes_of = [cache_row_bytes(SPEC, stage, CACHE_TOKENS, "float32") for stage in UNEQUAL.schedule.stages]
    assert unequal.live_bytes() == max(bytes_of)
    for engine in unequal.pipeline.engines:
        held = [program for program in engine.programs if program.name.startswith(("one iteration", "insert"))]
        # Keys and values of a part at least; the last stage's counts, too.
        part = part_rows(6, 2) * cache_row_bytes(SPEC, engine.stage.stage, CACHE_TOKENS, "float32")
        assert all(program.aliased_bytes >= part for program in held), held
    unequal.reset()
    assert unequal.live_bytes() == 0


def test_an_unread_phase_is_finished_before_the_next(unequal: PipelineExecutor, loop: PlainLoop) -> None:
    unequal.reset()
    sampling = Sampling(max_tokens=9)
    call = EncodeCall((EncodeRow(0, (9, 8, 7), 0, 1, sampling),), 2, 16)
    first = unequal.dispatch(PhaseCommand(0, encode=(call,), decode=DecodeCall(4, 6, CACHE_TOKENS)))
    second = unequal.dispatch(PhaseCommand(1, decode=DecodeCall(4, 6, CACHE_TOKENS)))
    blocks = [second.decoded(), first.decoded()]
    tokens = [int(first.encoded()[0].tokens[0, 0])]
    for block in reversed(blocks):
        assert block is not None
        tokens += block.tokens[:, 1, 0].tolist()
    expected, sure = loop.answer((9, 8, 7), sampling)
    assert sure == 9
    assert tokens == expected


def test_a_failing_program_is_an_engine_error_and_reset_goes_on(
    unequal: PipelineExecutor, loop: PlainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: the device hiccuped")

    with monkeypatch.context() as patched:
        patched.setattr(unequal.pipeline.engines[1], "iterate", fails)
        call = EncodeCall((EncodeRow(0, (1, 2), 0, 0, Sampling(max_tokens=5)),), 2, 16)
        with pytest.raises(EngineError, match="hiccuped"):
            unequal.dispatch(PhaseCommand(0, encode=(call,), decode=DecodeCall(4, 6, CACHE_TOKENS))).decoded()
    unequal.reset()
    run(unequal, UNEQUAL, loop, random.Random(4), 7, 0.0)


def test_slots_go_to_micro_batches_in_turns() -> None:
    schedule = dataclasses.replace(CUT.schedule, max_rows=8, decode_batch=5, micro_batch=2, encode_batch=1)
    assert decode_parts(schedule) == 3
    assert allocated_rows(schedule) == 9
    for rows in range(1, 9):
        places = [place_of(slot, 3) for slot in range(rows)]
        assert len(set(places)) == rows
        assert max(place for _, place in places) + 1 == part_rows(rows, 3)
        sizes = collections.Counter(part for part, _ in places)
        assert max(sizes.values()) - min(sizes[part] for part in range(3)) <= 1


def overlapping(entries: list[TimelineEntry]) -> int:
    """How often a micro-batch was dispatched to a stage before the one ahead of it was ready on the stage behind."""
    at = {(entry.iteration, entry.micro_batch, entry.stage): entry for entry in entries}
    pairs = [(entry, at.get((iteration, part - 1, stage + 1))) for (iteration, part, stage), entry in at.items()]
    return sum(ahead is not None and entry.dispatched_s < ahead.ready_s for entry, ahead in pairs)


def test_stages_overlap(unequal: PipelineExecutor) -> None:
    """By order alone. A pass here takes about as long as it takes to dispatch, so it is looked for in many phases."""
    unequal.reset()
    rows = [EncodeRow(n, tuple(range(16)), 0, n, Sampling(max_tokens=31)) for n in range(6)]
    calls = tuple(EncodeCall(tuple(rows[first : first + 2]), 2, 16) for first in range(0, 6, 2))
    encodes = decodes = 0
    for phase in range(100):
        command = PhaseCommand(phase, (), tuple(range(6)), encode=calls, decode=DecodeCall(30, 6, CACHE_TOKENS))
        pending = unequal.dispatch(command)
        encoded, block = pending.encoded(), pending.decoded()
        assert block is not None
        assert len(block.work) == 30 * 2 * 3
        encodes += overlapping(stage_entries(phase, "encode", [work for result in encoded for work in result.work]))
        decodes += overlapping(stage_entries(phase, "decode", block.work))
        if encodes and decodes:
            return
    raise AssertionError(f"{encodes} overlaps of encode calls, {decodes} of iterations")


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40))
def test_random_plans_give_the_same_tokens(loop: PlainLoop, seed: int) -> None:
    """Five plans each, on the same stages."""
    rng = random.Random(seed)
    plans = random_plans(rng, SPEC.num_layers, 5)
    executor = warm(plans[0])
    for plan in plans:
        runner = run(executor, plan, loop, rng, 16, 0.2)
        check_plan_was_run(plan, list(runner.timeline))
