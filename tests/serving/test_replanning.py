"""--replan: what the Runner is given, and a plan made again in a process of its own for the traffic that was seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from serving import cli
from serving.commands import generate
from serving.flags import shared
from serving.plans import replanning
from serving.plans.plan_files import read_plan
from serving.progress import Display
from solver.facts.model_config import read_model_spec
from solver.facts.workload import merge
from solver.plan.plan import Plan
from tests.serving.planning_toy import inputs, run, toy

__all__ = ["run", "toy"]

TRAFFIC = merge("traffic", "seen", np.array([20, 100, 100]), np.array([30, 10, 40]), np.array([1.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def planned(toy: Path) -> Plan:
    path = toy / "plan.json"
    assert cli.main(["plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra", f"--output={path}"]) == 0
    return read_plan(str(path))


def command(toy: Path) -> replanning.PlanCommand:
    return replanning.PlanCommand(toy / "toy", (str(toy / "profile.json"),), str(toy / "cluster.json"))


def test_a_plan_is_made_again_for_what_was_seen(toy: Path, planned: Plan) -> None:
    before = planned
    new = command(toy)(TRAFFIC, before)
    assert (new.cache_tokens, new.max_prompt_tokens) == (before.cache_tokens, before.max_prompt_tokens)
    assert (new.bounds, new.model, new.dtype) == (before.bounds, before.model, before.dtype)
    assert new.margins is not None
    assert new.margins.mean_output_tokens == pytest.approx(TRAFFIC.mean_output)
    assert new.inputs is not None
    assert new.inputs.workload != before.inputs.workload  # type: ignore[union-attr]
    assert new.schedule.stages == before.schedule.stages


def test_what_cannot_be_kept_or_has_changed_is_said_in_one_line(toy: Path, planned: Plan) -> None:
    before = planned
    assert before.bounds is not None
    hasty = dataclasses.replace(before, bounds=dataclasses.replace(before.bounds, latency_s=1e-6))
    with pytest.raises(ValueError, match="no plan of policies rra keeps every bound: latency_bound_s=1e-06"):
        command(toy)(TRAFFIC, hasty)
    assert before.inputs is not None
    other = dataclasses.replace(before.inputs, cluster=dataclasses.replace(before.inputs.cluster, digest="0" * 64))
    with pytest.raises(ValueError, match="cluster: the plan in force was made from 000000000000, what is found"):
        replanning.check_same(other, before.inputs)
    replanning.check_same(before.inputs, before.inputs)


def test_a_stopped_runner_asks_for_nothing(toy: Path, planned: Plan) -> None:
    asking = command(toy)
    asking.stop()
    with pytest.raises(ValueError, match="stopping"):
        asking(TRAFFIC, planned)


def values_of(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    shared.define_schedule(values)
    shared.define_plan(values)
    shared.define_engine(values)
    replanning.define_replan(values)
    values(["generate", *arguments])
    return values


@pytest.mark.parametrize(("mode", "follows"), [("off", False), ("within", True), ("auto", True)])
def test_the_flag_says_how_far_to_follow(toy: Path, planned: Plan, mode: str, follows: bool) -> None:
    plan, spec = planned, read_model_spec(toy / "toy")
    with Display() as display:
        found = replanning.following_of(toy / "toy", values_of(f"--replan={mode}"), spec, plan, None, display)
    assert (found.follower is not None) == follows


def test_auto_needs_a_plan_whose_bounds_are_known(toy: Path, planned: Plan) -> None:
    spec, plan = read_model_spec(toy / "toy"), planned

    def refused(given: Plan, *arguments: str) -> str:
        with Display() as display, pytest.raises(ValueError) as caught:
            replanning.following_of(toy / "toy", values_of("--replan=auto", *arguments), spec, given, None, display)
        return str(caught.value)

    assert "name a plan with --plan" in refused(dataclasses.replace(plan, inputs=None))
    assert "use --replan=within" in refused(plan, "--engine=fake")


def test_generate_follows_and_tells_its_decisions(numbers_model: Path, tmp_path: Path, run: Callable) -> None:
    lines = [json.dumps({"id": str(n), "prompt": f"{n} ->", "max_tokens": 5 if n < 100 else 30}) for n in range(400)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    status, _, errors = run(
        "generate", f"--model={numbers_model}", f"--input={source}", f"--output={target}", "--engine=fake",
        "--cache_tokens=64", "--replan=within",
    )  # fmt: skip
    assert status == 0, errors
    assert len(target.read_text().splitlines()) == 400
    records = [json.loads(line.removeprefix("replan ")) for line in errors.splitlines() if line.startswith("replan ")]
    assert "adjust" in {record["event"] for record in records}
    assert generate.FLAGS.replan == "within"
