"""Another plan on the stage that runs: rows carried over or drained, the same tokens, nothing compiled on the way."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Mapping

import pytest

from exegpt_jax.engine import compiling
from exegpt_jax.engine.api import Executor, Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.engine.succession import PipelineSuccession, Succession, carries, prepare, same_stages, succession
from exegpt_jax.models.random import random_stage
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.next_plan import Successor
from exegpt_jax.runner.request import Request
from exegpt_jax.sharding.stage import Stage
from solver.plan.buckets import Buckets
from solver.plan.in_place import in_place_of
from solver.plan.memory import memory_table
from solver.plan.plan import Plan, make_plan
from solver.plan.schedule import Schedule, StageSpec
from tests.exegpt_jax import test_waa
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.random_plans import plan_over, stage_specs, stages_of
from tests.exegpt_jax.test_runner_engine import Heard
from tests.exegpt_jax.tiny_models import spec_of

CACHE_TOKENS, PROMPT_TOKENS = 48, 16
PLENTY = 2**40


def stage_of() -> Stage:
    """One layer: less to compile."""
    spec = spec_of("llama")
    one = dataclasses.replace(spec, layers=(dataclasses.replace(spec.layers[0], count=1),))
    return random_stage(one, seed=3, scale=2.0)


def plan_of(rows: int, iterations: int = 4, batch: int = 3) -> Plan:
    stage = StageSpec("both", (0, 1), (0,), 1)
    schedule = Schedule("rra", batch, iterations, rows, rows, (stage,), rows, 3)
    buckets = Buckets((3,), (PROMPT_TOKENS,), (rows,), (CACHE_TOKENS,))
    return Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, buckets)


@pytest.fixture(scope="module")
def executor() -> LocalExecutor:
    engine = Engine(stage_of(), plan_of(6))
    engine.warm_up()
    return LocalExecutor(engine)


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(stage_of(), CACHE_TOKENS)


def prepared(executor: LocalExecutor, plan: Plan) -> Succession:
    """On a thread of its own, as a Follower does it."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(prepare(executor, plan, PLENTY)))
    thread.start()
    thread.join()
    (succession,) = found
    assert isinstance(succession, Succession)
    return succession


def requests_of(seed: int, count: int) -> list[Request]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        prompt = tuple(rng.randrange(53) for _ in range(rng.randint(1, PROMPT_TOKENS)))
        sampling = Sampling(max_tokens=rng.randint(8, 30), temperature=rng.choice([0.0, 0.9]), seed=number)
        found.append(Request(f"r{number}", prompt, sampling))
    return found


def run(
    executor: Executor, plan: Plan, successors: Mapping[int, Successor], requests: list[Request]
) -> tuple[Runner, Heard]:
    """Each successor is ready before the phase of its number."""
    heard, follower = Heard(), Follower(plan)
    runner = Runner(plan, executor, heard, follower=follower)
    for request in requests:
        runner.submit(request)
    phase = 0
    while True:
        if phase in successors:
            follower.successor = successors[phase]
        if not runner.run_phase():
            break
        phase += 1
    assert follower.successor is None
    assert runner.stats().failed_phases == 0
    assert runner.stats().live_bytes == 0
    return runner, heard


def follower_of(runner: Runner) -> Follower:
    assert runner.follower is not None
    return runner.follower


def swaps(runner: Runner) -> list[dict[str, object]]:
    return [dict(record.numbers) for record in follower_of(runner).records if record.event == "swap"]


def test_rows_go_on_under_another_plan(executor: LocalExecutor, loop: PlainLoop) -> None:
    """More rows and iterations, the first plan again while rows decode, and once more behind drained devices."""
    engine = executor.engine
    before = compiling.compilations(), compiling.compiled_behind()
    grown = prepared(executor, plan_of(9, iterations=6, batch=4))
    assert same_stages(executor, grown.plan)
    assert compiling.compilations() == before[0]
    # Encode programs are alike; those that touch slots are not.
    assert compiling.compiled_behind() - before[1] == grown.compiled == 6
    back = succession(grown.plan, engine, PLENTY)
    drained = succession(grown.plan, engine, usable_bytes=1)
    assert (grown.carries, back.carries, drained.carries) == (True, True, False)
    requests = requests_of(1, 24)
    with compiling.forbid_compilations():
        runner, heard = run(executor, engine.plan, {2: grown, 5: back, 8: grown, 11: drained}, requests)
    heard.check(requests, loop)
    assert runner.plan == engine.plan
    assert [record["carried"] > 0 for record in swaps(runner)] == [True, True, True, False]  # type: ignore[operator]
    # To more rows at once; to fewer when the others have gone, if need be; drained devices were waited for.
    held = [record["held_s"] for record in swaps(runner)]
    assert held[0] == held[2] == 0.0
    assert held[3] > 0  # type: ignore[operator]
    # Nine rows are nine: more than the first plan could hold have decoded together.
    assert max(entry.rows for entry in runner.timeline if entry.kind == "decode") > 6


def test_rows_are_carried_where_both_caches_fit(executor: LocalExecutor) -> None:
    spec, plan = executor.engine.stage.spec, executor.engine.plan
    table = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype)[0]
    assert carries(spec, plan, plan_of(6, iterations=9), 1)
    need = table.total_bytes + table.cache_bytes + table.counts_bytes
    other = plan_of(5)
    assert carries(spec, other, plan, need)
    assert carries(spec, plan, other, need)
    assert not carries(spec, plan, other, table.total_bytes)
    longer = dataclasses.replace(plan, cache_tokens=40, buckets=dataclasses.replace(plan.buckets, cache_tokens=(40,)))
    assert not carries(spec, plan, longer, PLENTY)


def test_fewer_rows_take_those_that_are_there(loop: PlainLoop) -> None:
    """Nothing is compiled for a plan of fewer rows, and of not twice the iterations; its own controls run."""
    stage = StageSpec("both", (0, 1), (0,), 1)
    large, small = (
        make_plan(
            stage_of().spec, Schedule("rra", rows, iterations, rows, rows, (stage,), rows, rows), model="test",
            dtype="float32", cache_dtype="float32", cache_tokens=CACHE_TOKENS, max_prompt_tokens=PROMPT_TOKENS,
        )
        for rows, iterations in ((2, 4), (1, 7))
    )  # fmt: skip
    engine = Engine(stage_of(), large)
    engine.warm_up()
    executor = LocalExecutor(engine)
    other = prepared(executor, small)
    assert (other.compiled, other.carries, other.resize) == (0, True, None)
    assert other.plan == in_place_of(stage_of().spec, large, small, PLENTY)
    assert other.plan.schedule == dataclasses.replace(small.schedule, max_rows=2, micro_batch=2, held_rows=1)
    requests = requests_of(7, 6)
    with compiling.forbid_compilations():
        runner, heard = run(executor, large, {3: other}, requests)
    heard.check(requests, loop)
    decodes = [entry for entry in runner.timeline if entry.kind == "decode"]
    (swapped,) = (record.phase for record in follower_of(runner).records if record.event == "swap")
    for part, most in (
        ([each for each in decodes if each.phase < swapped], (2, 4)),
        # The rows that were there go on; then its own.
        ([each for each in decodes if each.phase > swapped + 10], (1, 7)),
    ):
        assert (max(each.rows for each in part), max(each.iterations for each in part)) == most
    # More rows than there are, rows of another length, more bytes than there are: nothing of the other's is of use.
    spec, rungs = stage_of().spec, dataclasses.replace(large.buckets, cache_tokens=(CACHE_TOKENS + 1,))
    longer = dataclasses.replace(large, cache_tokens=CACHE_TOKENS + 1, buckets=rungs)
    assert in_place_of(spec, small, large, PLENTY) is large
    assert in_place_of(spec, longer, small, PLENTY) is small
    assert in_place_of(spec, large, small, 1) is small
    # The successor of one that is in place itself holds what it asks for.
    assert in_place_of(spec, other.plan, small, PLENTY) == other.plan


def test_another_stage_is_not_the_same(executor: LocalExecutor) -> None:
    plan = executor.engine.plan
    stage = dataclasses.replace(plan.schedule.stages[0], devices=(1,))
    elsewhere = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, stages=(stage,)))
    assert not same_stages(executor, elsewhere)
    assert not same_stages(executor, dataclasses.replace(plan, cache_dtype="bfloat16"))


@pytest.mark.full
def test_several_stages_go_on_under_another_plan() -> None:
    """Rows of every micro-batch, carried into parts of more rows; and back to the first plan behind drained devices."""
    specs = stage_specs([((0, 1), 1), ((1, 3), 2)])
    small, large = (
        plan_over(specs, parts=2, iterations=n, buckets=Buckets((2,), (PROMPT_TOKENS,), (rows,), (CACHE_TOKENS,)))
        for rows, n in ((4, 3), (6, 4))
    )
    first = PipelineExecutor(stages_of(small, spec_of("llama")), small)
    first.warm_up()
    before = compiling.compilations()
    grown = prepare(first, large, PLENTY)
    assert compiling.compilations() == before
    assert isinstance(grown, PipelineSuccession)
    assert same_stages(first, large)
    back = PipelineSuccession(first, None, 0)
    assert (grown.carries, back.carries) == (True, False)
    requests = requests_of(3, 24)
    with compiling.forbid_compilations():
        runner, heard = run(first, small, {3: grown, 9: back}, requests)
    loop = PlainLoop(random_stage(spec_of("llama"), seed=3, scale=2.0), CACHE_TOKENS)
    heard.check(requests, loop)
    assert [record["carried"] > 0 for record in swaps(runner)] == [True, False]  # type: ignore[operator]
    assert runner.plan == small
    # Slots of other parts are other slots.
    other = plan_over(specs, parts=1, buckets=large.buckets)
    assert not carries(spec_of("llama"), small, other, PLENTY)


@pytest.mark.full
def test_sides_that_are_apart_come_to_rest_and_begin_again() -> None:
    """More rows per phase on the same weights; payloads under way are waited for."""
    before = test_waa.plan_of(test_waa.ONE_STAGE)
    plan = test_waa.plan_of(dataclasses.replace(test_waa.ONE_STAGE, encode_batch=2, max_rows=8))
    first = test_waa.executor_of(before)
    assert same_stages(first, plan)
    assert not same_stages(first, plan_of(6))
    other = prepare(first, plan, PLENTY)
    assert not other.carries
    requests = requests_of(5, 20)
    with compiling.forbid_compilations():
        runner, heard = run(first, before, {6: other}, requests)
    stage = test_waa.stage_of(StageSpec("both", (0, 3), (0,), 1))
    heard.check(requests, PlainLoop(stage, CACHE_TOKENS))
    (swap,) = swaps(runner)
    assert swap["held_s"] > 0  # type: ignore[operator]
    assert runner.plan == plan
    assert max(entry.rows for entry in runner.timeline if entry.kind == "decode") > before.schedule.max_rows
