"""From a directory and a plan to a warm executor of that plan, weights read onto each stage's devices."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import jax
import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.engine.rehearsal import rehearse
from exegpt_jax.runner.build_planned import build_planned
from exegpt_jax.runner.events import Event, Tokens
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.weights.loading import load_stage
from solver.facts.model_config import read_model_spec
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import StageSpec
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.random_plans import CACHE_TOKENS, plan_over
from tests.exegpt_jax.tiny_models import write_model

# The head ties to the embedding, which is another stage's; the devices stand in no order.
STAGES = (StageSpec("both", (0, 1), (5, 2), 2), StageSpec("both", (1, 3), (7,), 1))
PLAN = plan_over(STAGES, parts=2, iterations=3, buckets=Buckets((2,), (16,), (4,), (CACHE_TOKENS,)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "qwen2"
    write_model("qwen2", directory)
    return directory


def test_stages_are_loaded_where_the_plan_says_and_answer_as_one(model: Path) -> None:
    lines: list[str] = []
    built = build_planned(model, PLAN, progress=lines.append)
    assert isinstance(built.executor, PipelineExecutor)
    rehearse(built.executor, built.plan)
    assert built.executor.live_bytes() == 0
    assert lines[-1].startswith(f"plan {PLAN.digest[:12]}: rra ")
    assert "stages=2 tensor=2,1 micro_batches=2" in lines[-1]
    for engine, stage in zip(built.executor.pipeline.engines, STAGES, strict=True):
        assert [device.id for device in engine.stage.mesh.devices.flat] == list(stage.devices)
        assert {memory.device for memory in built.memory} == {5, 2, 7}
        held = sum(param.addressable_shards[0].data.nbytes for param in engine.stage.params)
        assert {m.weights_bytes for m in built.memory if m.device in stage.devices} == {held}
    heard: list[Event] = []
    runner = Runner(built.plan, built.executor, heard.extend)
    sampling = Sampling(max_tokens=9)
    for number in range(6):
        runner.submit(Request(str(number), (1 + number, 2), sampling))
    while runner.run_phase():
        pass
    assert runner.stats().compilations == runner.stats().live_bytes == 0
    tokens = collections.defaultdict(list)
    for event in heard:
        if isinstance(event, Tokens):
            tokens[event.id] += event.token_ids
    spec = read_model_spec(model)
    whole = StageSpec("both", (0, spec.num_layers), (0,), 1)
    loop = PlainLoop(load_stage(model, spec, whole, "float32", jax.devices()[:1]), CACHE_TOKENS)
    for number in range(6):
        expected, sure = loop.answer((1 + number, 2), sampling)
        assert sure > 3
        assert tokens[str(number)][:sure] == expected[:sure]


def with_stages(*stages: StageSpec) -> Plan:
    return dataclasses.replace(PLAN, schedule=dataclasses.replace(PLAN.schedule, stages=stages))


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (with_stages(STAGES[0], dataclasses.replace(STAGES[1], devices=(9,))), "schedule.stages: devices .* --devices"),
        (with_stages(STAGES[0], dataclasses.replace(STAGES[1], devices=(2,))), "no stage may share one"),
        (
            dataclasses.replace(
                PLAN,
                schedule=dataclasses.replace(PLAN.schedule, max_rows=10**9),
                buckets=dataclasses.replace(PLAN.buckets, decode_rows=(10**9,)),
            ),
            "memory: device . needs .* lower --max_rows",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model: Path, plan: Plan, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        build_planned(model, plan)
    assert "\n" not in str(caught.value)
