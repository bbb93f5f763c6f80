"""A rehearsal reaches every encode and decode program and leaves nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from exegpt_jax.engine.api import PhaseCommand
from exegpt_jax.engine.call_shapes import decode_shapes
from exegpt_jax.engine.compiling import Program, forbid_compilations
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.engine.rehearsal import encode_shapes, rehearse
from exegpt_jax.testing.fake import FakeExecutor
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from tests.exegpt_jax.runner_bench import VOCAB, plan_of
from tests.exegpt_jax.test_engine_tokens import CACHE_TOKENS, engine_of
from tests.exegpt_jax.test_runner_apart import apart_plan
from tests.exegpt_jax.tiny_models import spec_of

PLANS = [
    *(plan_of(policy) for policy in ("rra", "static", "iteration", "chunked")),
    plan_of("rra", encode_batch=1, iterations=1, rows=1, cache_tokens=2, prompt_tokens=1),
    plan_of("rra", prompt_tokens=127),
    apart_plan(),
    apart_plan(encode_stages=2, parts=3),
]


def run(commands: Sequence[PhaseCommand]) -> tuple[set, set]:
    """Shapes that were encoded and decoded."""
    encodes = {(call.rows_bucket, call.tokens_bucket, call.context_bucket) for c in commands for call in c.encode}
    return encodes, {(c.decode.rows_bucket, c.decode.cache_bucket) for c in commands if c.decode is not None}


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_shape_runs_and_the_executor_is_empty_again(plan: Plan) -> None:
    """The fake executor refuses what no Runner may send."""
    executor, commands = FakeExecutor(plan, VOCAB), []
    dispatch = executor.dispatch

    def noted(command: PhaseCommand) -> object:
        commands.append(command)
        return dispatch(command)

    executor.dispatch = noted  # type: ignore[method-assign, assignment]  # looked over its shoulder
    assert rehearse(executor, plan) == max(len(encode_shapes(plan)), len(decode_shapes(plan)))
    assert run(commands) == (set(encode_shapes(plan)), set(decode_shapes(plan)))
    assert executor.live_bytes() == 0


@pytest.mark.parametrize("policy", ["rra", "chunked"])
def test_no_encode_or_decode_program_of_a_real_engine_is_left_out(policy: str) -> None:
    engine = engine_of(spec_of("llama"), policy, Buckets((1, 3), (8, 16), (3, 6), (24, CACHE_TOKENS)))
    ran: set[object] = set()

    def noting(key: object, program: Program) -> Program:
        def run(*arguments: object) -> object:
            ran.add(key)
            return program.run(*arguments)

        return dataclasses.replace(program, run=run)

    engine._run = {key: noting(key, program) for key, program in engine._run.items()}
    executor = LocalExecutor(engine)
    with forbid_compilations():
        rehearse(executor, engine.plan)
    assert {key for key in engine._run if key[0] in ("encode", "chunk", "decode")} <= ran
    assert executor.live_bytes() == 0
