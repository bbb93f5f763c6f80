"""T5 on several stages, under RRA and WAA: the tokens of one device, wherever encoder and decoder are cut."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import jax
import pytest

from exegpt_jax.engine.apart.executor import WaaExecutor
from exegpt_jax.engine.api import Executor
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.runner.build_planned import build_planned
from exegpt_jax.runner.loop import Runner
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from exegpt_jax.weights.checkpoint import SINGLE
from solver.facts.model_config import parse_config, read_model_spec
from solver.plan.buckets import Buckets
from solver.plan.fits import AtHand, check_fits
from solver.plan.plan import Plan, from_json
from solver.plan.schedule import Role, Schedule, StageSpec
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.test_runner_engine import CACHE_TOKENS, PROMPT_TOKENS, Heard, requests_of
from tests.exegpt_jax.tiny_models import CONFIGS, expected_params, random_tensors, write_tensors

CONFIG = {**CONFIGS["t5-v1.1"], "num_decoder_layers": 2, "decoder_start_token_id": 7}
SPEC = parse_config(CONFIG)
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


def weights() -> dict[str, np.ndarray]:
    """A checkpoint whose logits lie well apart."""
    tensors = random_tensors(SPEC, seed=3)
    return {name: 1.5 * x.shape[-1] ** -0.5 * x if x.ndim == 2 else 1 + 0.1 * x for name, x in tensors.items()}


def stage_of(stage: StageSpec) -> Stage:
    """The stage on its devices, without compiling anything."""
    layout = blueprint(SPEC, stage, "float32", make_mesh([jax.devices()[device] for device in stage.devices]))
    params = expected_params(SPEC, weights(), stage.tensor, stage.layers)
    return layout.bind([jax.device_put(params[leaf.path].astype(leaf.dtype), leaf.sharding) for leaf in layout.leaves])


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(stage_of(StageSpec("both", (0, LAYERS), (0,), 1)), CACHE_TOKENS)


def executor_of(plan: Plan) -> Executor:
    stages = [stage_of(stage) for stage in plan.schedule.stages]
    apart = plan.schedule.policy != "rra"
    executor = WaaExecutor(stages, plan, checked=True) if apart else PipelineExecutor(stages, plan)
    executor.warm_up()
    return executor


def run(plan: Plan, executor: Executor, loop: PlainLoop, seed: int, count: int) -> Runner:
    """Everybody's tokens, some cancelled on the way; afterwards nothing is left."""
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
    apart = schedule.policy != "rra"
    encoders = {index for index, stage in enumerate(schedule.stages) if not apart or stage.role == "encode"}
    assert {entry.stage for entry in entries if entry.kind == "decode"} == decoders
    assert {entry.stage for entry in entries if entry.kind == "encode"} == encoders
    assert {(entry.stage, entry.tensor) for entry in entries} == {(i, s.tensor) for i, s in enumerate(schedule.stages)}
    parts = {entry.micro_batch for entry in entries if entry.kind == "decode"}
    assert len(parts) == -(-schedule.decode_batch // schedule.micro_batch)


def test_encode_devices_hold_the_encoder_and_decode_devices_the_decoder(loop: PlainLoop) -> None:
    """WAA: activations are handed over, and compared before and after."""
    plan = plan_of("waa", ((0, 1, 1), (1, 2, 2), (2, 3, 1), (3, 4, 2)))
    executor = executor_of(plan)
    assert isinstance(executor, WaaExecutor)
    check_stages(plan, run(plan, executor, loop, 5, 12))


def test_stages_of_encoder_and_decoder_share_devices(loop: PlainLoop, tmp_path: Path) -> None:
    """RRA: the phases take turns, so the same devices do both; built from a directory and a plan's file."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_tensors(tmp_path / SINGLE, weights())
    stages = [StageSpec("encode", (0, 1), (3, 1), 2), StageSpec("encode", (1, 2), (0,), 1)]
    stages += [StageSpec("decode", (2, 3), (0,), 1), StageSpec("decode", (3, 4), (3, 1), 2)]
    plan = plan_of("rra", ((0, LAYERS, 1),))
    plan = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, stages=tuple(stages)))
    check_fits(plan, "plan", AtHand("here", read_model_spec(tmp_path), lambda: "", ("cpu",) * 4))
    built = build_planned(tmp_path, from_json(plan.to_json()), compilation_cache=tmp_path / "programs")
    assert {memory.stage: memory.device for memory in built.memory} == {0: 1, 1: 0, 2: 0, 3: 1}
    check_stages(plan, run(plan, built.executor, loop, 6, 12))


def test_what_does_not_fit_is_refused() -> None:
    """Stages that leave layers out, or are cut elsewhere than between encoder and decoder."""
    at_hand = AtHand("here", SPEC, lambda: "", None)
    for cut in (((0, 2, 1), (2, 4, 1)), ((0, 1, 1), (1, 2, 1), (2, 4, 2))):
        check_fits(plan_of("waa", cut), "plan", at_hand)
    for cut in (((0, 3, 1), (3, 4, 1)), ((0, 2, 1), (3, 4, 1)), ((1, 2, 1), (2, 4, 1)), ((0, 2, 1), (2, 3, 1))):
        with pytest.raises(ValueError, match=r"plan: schedule\.stages: "):
            check_fits(plan_of("waa", cut), "plan", at_hand)
    other = dataclasses.replace(plan_of("rra", ((0, 4, 1),)), first_token="encode")
    with pytest.raises(ValueError, match="plan: first_token: the plan says encode, here has decode"):
        check_fits(other, "plan", at_hand)


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
        check_stages(plan, run(plan, executor_of(plan), loop, seed, 16))
