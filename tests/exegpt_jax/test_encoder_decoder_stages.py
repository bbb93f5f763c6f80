"""T5 on several stages, under RRA and WAA: the tokens of one device, wherever encoder and decoder are cut."""

from __future__ import annotations

import itertools
import random

import jax
import pytest

from exegpt_jax.engine.apart import WaaExecutor
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.pipeline_executor import PipelineExecutor
from exegpt_jax.runner.loop import Runner
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.model_config import parse_config
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Role, Schedule, StageSpec
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.test_runner_engine import CACHE_TOKENS, PROMPT_TOKENS, Heard, requests_of
from tests.exegpt_jax.tiny_models import CONFIGS, expected_params, random_tensors

SPEC = parse_config({**CONFIGS["t5-v1.1"], "num_decoder_layers": 2, "decoder_start_token_id": 7})
LAYERS, ENCODERS = SPEC.num_layers, SPEC.encoder_layers
Cut = tuple[tuple[int, int, int], ...]
"""(first layer, end, tensor degree) of each stage."""


def plan_of(policy: str, cut: Cut, parts: int = 2, rows: int = 6, encode_batch: int = 2, iterations: int = 4) -> Plan:
    """Under WAA, stages of the encoder encode and those of the decoder decode."""
    stages, device = [], 0
    for first, end, tensor in cut:
        role: Role = "both" if policy == "rra" else "encode" if end <= ENCODERS else "decode"
        stages.append(StageSpec(role, (first, end), tuple(range(device, device + tensor)), tensor))
        device += tensor
    schedule = Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=encode_batch,
        decode_iterations=iterations,
        decode_batch=rows,
        max_rows=rows,
        stages=tuple(stages),
        micro_batch=-(-rows // parts),
        encode_micro_batch=encode_batch,
    )
    buckets = Buckets((encode_batch,), (PROMPT_TOKENS,), (rows,), (CACHE_TOKENS,))
    return Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, buckets, "decode")


def stage_of(stage: StageSpec) -> Stage:
    """The stage on its devices, without compiling anything; logits lie well apart."""
    layout = blueprint(SPEC, stage, "float32", make_mesh([jax.devices()[device] for device in stage.devices]))
    tensors = {
        name: 1.5 * x.shape[-1] ** -0.5 * x if x.ndim == 2 else 1 + 0.1 * x
        for name, x in random_tensors(SPEC, seed=3).items()
    }
    params = expected_params(SPEC, tensors, stage.tensor, stage.layers)
    return layout.bind([jax.device_put(params[leaf.path].astype(leaf.dtype), leaf.sharding) for leaf in layout.leaves])


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(stage_of(StageSpec("both", (0, LAYERS), (0,), 1)), CACHE_TOKENS)


def run(plan: Plan, loop: PlainLoop, seed: int, count: int) -> Runner:
    """Everybody's tokens, some cancelled on the way; afterwards nothing is left."""
    stages = [stage_of(stage) for stage in plan.schedule.stages]
    apart = plan.schedule.policy != "rra"
    executor = WaaExecutor(stages, plan, checked=True) if apart else PipelineExecutor(stages, plan)
    executor.warm_up()
    heard, rng, requests = Heard(), random.Random(seed), requests_of(seed, count)
    runner = Runner(plan, executor, heard)
    with forbid_compilations():
        for request in requests:
            runner.submit(request)
        while runner.run_phase():
            if rng.random() < 0.1:
                runner.cancel(rng.choice(requests).id)
    stats = runner.stats()
    assert (stats.waiting, stats.running, stats.live_bytes, stats.failed_phases) == (0, 0, 0, 0)
    heard.check([each for each in requests if heard.finished[each.id].reason != "abort"], loop)
    return runner


def check_stages(plan: Plan, runner: Runner) -> None:
    """Read back from the Timeline: who encoded, who decoded, on what degree, in how many micro-batches."""
    entries, schedule = list(runner.timeline), plan.schedule
    decoders = {index for index, stage in enumerate(schedule.stages) if stage.layers[1] > ENCODERS}
    encoders = {index for index, stage in enumerate(schedule.stages) if stage.role != "decode"}
    assert {entry.stage for entry in entries if entry.kind == "decode"} == decoders
    assert {entry.stage for entry in entries if entry.kind == "encode"} == encoders
    assert {(entry.stage, entry.tensor) for entry in entries} == {(i, s.tensor) for i, s in enumerate(schedule.stages)}
    parts = {entry.micro_batch for entry in entries if entry.kind == "decode"}
    assert len(parts) == -(-schedule.decode_batch // schedule.micro_batch)


@pytest.mark.parametrize(
    ("policy", "cut"),
    [("rra", ((0, 1, 2), (1, 3, 1), (3, 4, 2))), ("waa", ((0, 1, 1), (1, 2, 2), (2, 3, 1), (3, 4, 2)))],
    ids=["rra", "waa"],
)
def test_stages_give_the_same_tokens(policy: str, cut: Cut, loop: PlainLoop) -> None:
    plan = plan_of(policy, cut)
    check_stages(plan, run(plan, loop, 5, 12))


def random_cut(rng: random.Random, policy: str) -> Cut:
    """Stages on at most 8 devices; under WAA one ends where the encoder does."""
    while True:
        inner = set(rng.sample(range(1, LAYERS), rng.randint(1, LAYERS - 1)))
        bounds = [0, *sorted(inner | ({ENCODERS} if policy == "waa" else set())), LAYERS]
        degrees = [rng.choice([1, 1, 2, 4]) for _ in bounds[1:]]
        if sum(degrees) <= 8:
            return tuple((*layers, n) for layers, n in zip(itertools.pairwise(bounds), degrees, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(25))
def test_random_plans_give_the_same_tokens(loop: PlainLoop, seed: int) -> None:
    """Four plans each."""
    for number in range(4):
        rng = random.Random(100 * seed + number)
        policy = rng.choice(["rra", "waa"])
        rows = rng.choice([4, 6])
        plan = plan_of(policy, random_cut(rng, policy), rng.choice([1, 2]), rows, rng.randint(1, 2), rng.randint(1, 6))
        check_stages(plan, run(plan, loop, seed, 16))
