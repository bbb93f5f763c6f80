"""The engine and the Runner on T5: the same tokens whatever the policy, batch mates, buckets, phases and cancels."""

from __future__ import annotations

import random

import numpy as np
import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.models.random import random_stage
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.facts.model_config import parse_config
from solver.plan.buckets import Buckets
from solver.plan.memory import memory_table
from solver.plan.plan import LARGEST_CHUNK_TOKENS, Plan, make_plan
from solver.plan.schedule import Schedule
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.test_runner_engine import CACHE_TOKENS, PROMPT_TOKENS, Heard, plan_of, requests_of, run
from tests.exegpt_jax.tiny_models import CONFIGS

SPEC = parse_config({**CONFIGS["t5-v1.1"], "decoder_start_token_id": 7})
BUCKETS = Buckets((3,), (PROMPT_TOKENS,), (6,), (24, CACHE_TOKENS))


def engine_of(tensor: int) -> Engine:
    stage = random_stage(SPEC, tensor=tensor, seed=3, scale=2.0)
    schedule = Schedule("rra", 3, 8, 6, 6, (stage.stage,), 6, 3)
    plan = Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, BUCKETS, "decode")
    engine = Engine(stage, plan)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(random_stage(SPEC, seed=3, scale=2.0), CACHE_TOKENS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(1)


@pytest.mark.parametrize(
    ("policy", "encode_batch", "iterations"), [("rra", 3, 5), ("rra", 1, 8), ("static", 3, 8), ("iteration", 2, 1)]
)
def test_every_policy_gives_the_plain_loops_tokens(
    engine: Engine, loop: PlainLoop, policy: str, encode_batch: int, iterations: int, full: bool
) -> None:
    heard = Heard()
    runner = Runner(plan_of(engine.plan, policy, encode_batch, iterations), LocalExecutor(engine), heard)
    requests = requests_of(iterations, 60 if full else 8)
    with forbid_compilations():
        run(runner, requests, random.Random(1))
    heard.check(requests, loop)
    assert runner.stats().live_bytes == runner.stats().failed_phases == 0


def test_cancels_change_nobody_elses_tokens(engine: Engine, loop: PlainLoop) -> None:
    heard, rng = Heard(), random.Random(5)
    runner = Runner(plan_of(engine.plan, "rra", 3, 4), LocalExecutor(engine), heard)
    requests = requests_of(17, 10)
    for request in requests:
        runner.submit(request)
    for _ in range(3):
        runner.run_phase()
        runner.cancel(rng.choice(requests).id)
    while runner.run_phase():
        pass
    cancelled = [end for end in heard.finished.values() if end.reason == "abort"]
    assert cancelled
    heard.check([request for request in requests if heard.finished[request.id].reason != "abort"], loop)
    assert runner.stats().live_bytes == 0


def test_the_first_token_comes_out_of_the_first_iteration(engine: Engine) -> None:
    """S tokens take S iterations; encode parts tell none, and lengths that the Runner does not know end rows too."""
    heard = Heard()
    plan = plan_of(engine.plan, "rra", 3, 4)
    runner = Runner(plan, HiddenLengths(LocalExecutor(engine), lambda row: 5), heard)
    for number in range(3):
        runner.submit(Request(str(number), (1, 2, 3 + number), Sampling(max_tokens=20)))
    while runner.run_phase():
        pass
    assert {name: len(tokens) for name, tokens in heard.tokens.items()} == {"0": 5, "1": 5, "2": 5}
    decodes = [entry for entry in runner.timeline if entry.kind == "decode"]
    assert [entry.iterations for entry in decodes] == [4, 1]
    assert sum(entry.tokens for entry in decodes) == 15


@pytest.mark.parametrize("tensor", [2, 8])
def test_devices_do_not_change_tokens(loop: PlainLoop, tensor: int, full: bool) -> None:
    if not full:
        pytest.skip("the parity of the engine covers four devices; two and eight in make test-full")
    heard = Heard()
    engine = engine_of(tensor)
    requests = requests_of(3, 6)
    run(Runner(plan_of(engine.plan, "rra", 2, 8), LocalExecutor(engine), heard), requests, random.Random(2))
    heard.check(requests, loop)


def test_bytes_are_as_counted(engine: Engine) -> None:
    """Cache and payloads hold decoder layers alone; the temporaries of every program stay below the estimate."""
    plan, stage = engine.plan, engine.stage
    (memory,) = memory_table(SPEC, plan.schedule, plan.buckets, "float32", "float32")
    assert memory.weights_bytes == sum(array.nbytes for array in stage.params)
    state = engine.initial_state()
    assert memory.cache_bytes == sum(array.nbytes for layer in state.cache.layers for array in layer)
    width = 2 * SPEC.heads * SPEC.head_dim * np.dtype(np.float32).itemsize
    assert memory.cache_bytes == 6 * CACHE_TOKENS * width
    assert memory.payload_bytes == 3 * PROMPT_TOKENS * width
    largest = max(program.temporary_bytes for program in engine.programs if program.name.startswith(("enc", "dec")))
    # Small programs hold constants besides.
    assert largest < 1.5 * memory.temporary_bytes


def test_what_an_encoder_cannot_do_is_refused_in_one_line(engine: Engine) -> None:
    lengths = {"model": "m", "dtype": "float32", "cache_dtype": "float32", "cache_tokens": 4096}
    stages = engine.plan.schedule.stages
    chunked = Schedule("chunked", 1, 1, 1, 1, stages, 1, 1, token_budget=8)
    with pytest.raises(ValueError, match="policy: chunked cannot run t5: its encoder reads whole prompts"):
        make_plan(SPEC, chunked, max_prompt_tokens=9, **lengths)  # type: ignore[arg-type]
    plan = make_plan(SPEC, engine.plan.schedule, max_prompt_tokens=2048, **lengths)  # type: ignore[arg-type]
    assert (plan.first_token, plan.max_prompt_tokens) == ("decode", LARGEST_CHUNK_TOKENS)
    assert plan.buckets.encode_tokens[-1] == LARGEST_CHUNK_TOKENS
    runner = Runner(engine.plan, LocalExecutor(engine), Heard())
    with pytest.raises(ValueError, match="generated_ids: 1 given, but this model's decoder"):
        runner.submit(Request("r", (1, 2), Sampling(max_tokens=5), generated_ids=(3,)))
