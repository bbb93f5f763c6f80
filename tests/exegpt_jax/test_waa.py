"""WAA on real devices: the tokens of one device, whatever the stages, degrees and micro-batches of either side."""

from __future__ import annotations

import dataclasses
import random

import jax
import pytest

from exegpt_jax.engine.apart import WaaExecutor
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.models.random import random_stage
from exegpt_jax.runner.loop import Runner
from exegpt_jax.sharding.stage import Stage
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Role, Schedule, StageSpec
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.test_runner_engine import CACHE_TOKENS, PROMPT_TOKENS, Heard, requests_of
from tests.exegpt_jax.tiny_models import spec_of

FAMILY = "llama"
# Few shapes: what rungs do is tested without numerics. Prompts of more than 16 tokens go in chunks.
ENCODE_ROWS, ENCODE_TOKENS = (3,), (16,)

Side = tuple[tuple[int, int, int], ...]
"""(first layer, end, tensor degree) of each stage."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What differs between plans: the sides and m_D."""

    encode: Side
    decode: Side
    parts: int = 1


def plan_of(shape: Shape, encode_batch: int = 3, max_rows: int = 6) -> Plan:
    stages, device = [], 0
    sides: tuple[tuple[Role, Side], ...] = (("encode", shape.encode), ("decode", shape.decode))
    for role, side in sides:
        for first, end, tensor in side:
            stages.append(StageSpec(role, (first, end), tuple(range(device, device + tensor)), tensor))
            device += tensor
    decode_batch = max_rows - 1
    schedule = Schedule(
        "waa", encode_batch, 4, decode_batch, max_rows, tuple(stages), -(-decode_batch // shape.parts), encode_batch
    )
    buckets = Buckets(ENCODE_ROWS, ENCODE_TOKENS, (max_rows,), (CACHE_TOKENS,))
    return Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, buckets)


def stages_of(plan: Plan) -> list[Stage]:
    spec, present = spec_of(FAMILY), jax.devices()
    return [
        random_stage(spec, s.layers, s.tensor, seed=3, scale=2.0, devices=[present[index] for index in s.devices])
        for s in plan.schedule.stages
    ]


def executor_of(plan: Plan) -> WaaExecutor:
    executor = WaaExecutor(stages_of(plan), plan, checked=True)
    executor.warm_up()
    return executor


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(random_stage(spec_of(FAMILY), seed=3, scale=2.0), CACHE_TOKENS)


SHAPES = [
    Shape(((0, 3, 1),), ((0, 3, 2),)),
    Shape(((0, 3, 4),), ((0, 3, 2),)),
    Shape(((0, 1, 2), (1, 3, 1)), ((0, 2, 1), (2, 3, 4)), parts=2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_tokens_and_nothing_left(shape: Shape, loop: PlainLoop) -> None:
    """Random arrivals and cancels; every payload is compared on its way; the Timeline tells which devices worked."""
    plan = plan_of(shape)
    executor, heard, rng = executor_of(plan), Heard(), random.Random(5)
    runner = Runner(plan, executor, heard)
    requests = requests_of(4, 40)
    with forbid_compilations():
        for request in requests:
            runner.submit(request)
            if rng.random() < 0.2:
                runner.cancel(rng.choice(requests).id)
            if rng.random() < 0.4:
                runner.run_phase()
        while runner.run_phase():
            pass
    stats = runner.stats()
    assert (stats.waiting, stats.running, stats.live_bytes, stats.failed_phases) == (0, 0, 0, 0)
    assert stats.compilations == 0
    assert len(heard.finished) == len(requests)
    answered = [request for request in requests if heard.finished[request.id].reason != "abort"]
    assert len(requests) / 2 < len(answered) < len(requests)
    heard.check(answered, loop)
    seen: dict[str, set[int]] = {"encode": set(), "decode": set()}
    for entry in runner.timeline:
        seen[entry.kind].add(entry.stage)
    stages = plan.schedule.stages
    assert seen["encode"] == {index for index, stage in enumerate(stages) if stage.role == "encode"}
    assert seen["decode"] == {index for index, stage in enumerate(stages) if stage.role == "decode"}
    for stage in stages:
        assert len(stage.devices) == stage.tensor
