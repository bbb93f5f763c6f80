"""WAA on real devices: the tokens of one device, whatever the stages, degrees and micro-batches of either side."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import pathlib
import random

import jax
import numpy as np
import pytest

from exegpt_jax.engine.apart.executor import WaaExecutor
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.rehearsal import rehearse
from exegpt_jax.runner import build_planned, warm
from exegpt_jax.runner.loop import Runner
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from exegpt_jax.weights.checkpoint import SINGLE
from solver.plan.buckets import Buckets
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan, from_json
from solver.plan.schedule import Role, Schedule, StageSpec
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.test_runner_engine import CACHE_TOKENS, PROMPT_TOKENS, Heard, requests_of
from tests.exegpt_jax.tiny_models import expected_params, random_tensors, spec_of, write_model, write_tensors

FAMILY = "llama"
Side = tuple[tuple[int, int, int], ...]
"""(first layer, end, tensor degree) of each stage."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What differs between plans.

    Attributes:
      encode, decode: the sides.
      parts: m_D.
      encode_tokens: of an encode call; longer prompts go in chunks.
      encode_batch, max_rows: of the schedule.
    """

    encode: Side
    decode: Side
    parts: int = 1
    encode_tokens: int = PROMPT_TOKENS
    encode_batch: int = 3
    max_rows: int = 6


def plan_of(shape: Shape) -> Plan:
    stages, device = [], 0
    sides: tuple[tuple[Role, Side], ...] = (("encode", shape.encode), ("decode", shape.decode))
    for role, side in sides:
        for first, end, tensor in side:
            stages.append(StageSpec(role, (first, end), tuple(range(device, device + tensor)), tensor))
            device += tensor
    rows, batch = shape.max_rows, shape.encode_batch
    decode_batch = max(1, rows - 1)
    micro_batch = -(-decode_batch // shape.parts)
    schedule = Schedule("waa", batch, 4, decode_batch, rows, tuple(stages), micro_batch, batch)
    buckets = Buckets((batch,), (shape.encode_tokens,), (rows,), (CACHE_TOKENS,))
    return Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, buckets)


def weights() -> dict[str, np.ndarray]:
    """A checkpoint whose logits lie well apart."""
    tensors = random_tensors(spec_of(FAMILY), seed=3)
    return {name: 1.5 * x.shape[-1] ** -0.5 * x if x.ndim == 2 else 1 + 0.1 * x for name, x in tensors.items()}


def stage_of(stage: StageSpec) -> Stage:
    """The stage on its devices, without compiling anything."""
    spec, present = spec_of(FAMILY), jax.devices()
    layout = blueprint(spec, stage, "float32", make_mesh([present[device] for device in stage.devices]))
    params = expected_params(spec, weights(), stage.tensor, stage.layers)
    return layout.bind([jax.device_put(params[leaf.path].astype(leaf.dtype), leaf.sharding) for leaf in layout.leaves])


def executor_of(plan: Plan) -> WaaExecutor:
    executor = WaaExecutor([stage_of(stage) for stage in plan.schedule.stages], plan, checked=True)
    executor.warm_up()
    return executor


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(stage_of(StageSpec("both", (0, spec_of(FAMILY).num_layers), (0,), 1)), CACHE_TOKENS)


LAYERS = spec_of(FAMILY).num_layers
# Compiling takes nearly all of the time; prompts in chunks, and more shapes, are left to full counts.
ONE_STAGE = Shape(((0, 3, 2),), ((0, 3, 1),))
SEVERAL_STAGES = Shape(((0, 1, 2), (1, 3, 1)), ((0, 2, 1), (2, 3, 4)), parts=2)


def random_shape(seed: int) -> Shape:
    """Sides on 2 to 8 devices."""
    rng = random.Random(seed)
    left = 8

    def side(keep: int) -> Side:
        nonlocal left
        cuts = [0, *sorted(rng.sample(range(1, LAYERS), rng.randint(0, LAYERS - 1))), LAYERS]
        stages = []
        for index, (first, end) in enumerate(itertools.pairwise(cuts)):
            later = len(cuts) - 2 - index
            tensor = rng.choice([degree for degree in (1, 2, 4) if degree <= left - keep - later])
            left -= tensor
            stages.append((first, end, tensor))
        return tuple(stages)

    rows = rng.randint(1, 8)
    return Shape(
        encode=side(keep=LAYERS),
        decode=side(keep=0),
        parts=rng.randint(1, min(3, max(1, rows - 1))),
        encode_tokens=rng.choice([16, PROMPT_TOKENS]),
        encode_batch=rng.randint(1, min(4, rows)),
        max_rows=rows,
    )


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40))
def test_random_plans_give_the_same_tokens(seed: int, loop: PlainLoop) -> None:
    plan = plan_of(random_shape(seed))
    check(plan, executor_of(plan), loop)


@pytest.mark.parametrize("shape", [SEVERAL_STAGES, pytest.param(ONE_STAGE, marks=pytest.mark.full)])
def test_a_plan_file_is_built_as_it_stands(
    shape: Shape, loop: PlainLoop, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every payload is compared before and after its hand-over."""
    write_model(FAMILY, tmp_path)
    write_tensors(tmp_path / SINGLE, weights())
    plan = from_json(plan_of(shape).to_json())
    monkeypatch.setattr(warm, "WaaExecutor", functools.partial(WaaExecutor, checked=True))
    built = build_planned.build_planned(tmp_path, plan, compilation_cache=tmp_path / "programs")
    assert isinstance(built.executor, WaaExecutor)
    rehearse(built.executor, built.plan)
    assert built.executor.live_bytes() == 0
    stages = enumerate(plan.schedule.stages)
    assert [(m.device, m.stage) for m in built.memory] == [(device, i) for i, own in stages for device in own.devices]
    assert all(memory.payload_bytes > 0 for memory in built.memory)
    check(plan, built.executor, loop)


def check(plan: Plan, executor: WaaExecutor, loop: PlainLoop) -> None:
    """Random arrivals and cancels: right tokens, nothing left; the Timeline tells which devices worked."""
    heard, rng = Heard(), random.Random(5)
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
        assert entry.tensor in (0, plan.schedule.stages[entry.stage].tensor)
    decoded = [entry for entry in runner.timeline if entry.kind == "decode"]
    parts = decode_parts(plan.schedule)
    assert all(entry.iterations == 1 and entry.micro_batch < parts for entry in decoded)
    assert {entry.micro_batch for entry in decoded} == set(range(min(parts, plan.schedule.max_rows)))
    encoded: collections.Counter[int] = collections.Counter()
    for entry in runner.timeline:
        if entry.kind == "encode" and entry.stage == 0:
            encoded[entry.phase] += entry.rows
    assert 1 <= max(encoded.values()) <= 2 * plan.schedule.encode_batch
    roles = [stage.role for stage in plan.schedule.stages]
    for role, indices in seen.items():
        assert indices == {index for index, own in enumerate(roles) if own == role}
