"""WAA from a padded profile to the engine: `exegpt plan`, `verify`, `simulate`, and `generate --plan`, whose devices
encode and decode apart and whose tokens are those of one device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exegpt_jax.weights.checkpoint import SINGLE
from serving import cli
from serving.commands import plan as plan_command
from solver.facts import cluster_file, profile_file, workload_file
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile, Table
from solver.facts.workload import merge
from solver.plan.plan import Plan, from_json
from tests.exegpt_jax.tiny_models import random_tensors, write_tensors
from tests.serving.as_planned import spans
from tests.serving.planning_toy import last_line
from tests.serving.planning_toy import run as run
from tests.serving.servers import write_tiny_model
from tests.solver.planner_cases import random_profile

ROWS = 64


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights, which the real engine runs."""
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny_weights"))
    write_tensors(directory / SINGLE, random_tensors(read_model_spec(directory)))
    return directory


@pytest.fixture(scope="module")
def planned(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for two CPU devices, from a profile of made-up times; beside it lies what made it.

    Few answers are long. Stages that do both in turns let these wait for prompts, which the bound does not allow, or
    decode until the longest ends.
    """
    folder = tmp_path_factory.mktemp("waa_planned")
    cluster = load_cluster("cpu")
    kind = dataclasses.replace(cluster.kinds[0], memory_bytes=2**24)
    groups = (dataclasses.replace(cluster.groups[0], devices_per_island=2),)
    cluster = dataclasses.replace(cluster, name="my", kinds=(kind,), groups=groups)
    (folder / "cluster.json").write_text(cluster_file.to_text(cluster))
    profile_file.write_profile(_made_up(read_model_spec(tiny_weights)), folder / "profile.json")
    prompts, answers = (side.ravel() for side in np.meshgrid([4, 8, 12], [2, 3, 30], indexing="ij"))
    workload = merge("toy", "made up", prompts, answers, np.where(answers < 30, 1.0, 0.2))
    (folder / "workload.json").write_text(workload_file.to_text(workload_file.file_of(workload, "made up")))
    for name in plan_command.FLAGS:
        plan_command.FLAGS[name].unparse()
    asked = ("--policies=waa,rra", "--latency_bound_s=0.046", f"--output={folder / 'plan.json'}")
    assert cli.main(["plan", f"--model={tiny_weights}", *made_from(folder), *asked]) == 0
    return folder / "plan.json"


def _made_up(spec: ModelSpec) -> Profile:
    """Decode is timed for few rows."""
    shape = profile_file.shape_digest(spec)
    profile = random_profile(np.random.default_rng(1), spec, tensors=(1,), shape=shape, padded=True)
    layers = []
    for times in profile.layers:
        decode = times.decode
        kept = decode.first <= ROWS
        few = Table(decode.first[kept], decode.second, decode.seconds[kept], decode.marks[kept])
        layers.append(dataclasses.replace(times, decode=few))
    return dataclasses.replace(profile, device_kind="cpu", layers=tuple(layers))


def made_from(folder: Path) -> list[str]:
    return [f"--{name}={folder / f'{name}.json'}" for name in ("cluster", "profile", "workload")]


def plan_of(path: Path) -> Plan:
    return from_json(path.read_text())


def test_verify_accepts_the_plan_and_catches_an_edited_throughput(
    run: Callable, tiny_weights: Path, planned: Path, tmp_path: Path
) -> None:
    given = (f"--model={tiny_weights}", *made_from(planned.parent))
    status, out, errors = run("verify", str(planned), *given)
    assert status == 0, errors
    assert last_line(out, "VERIFY")["holds"] is True
    plan = json.loads(planned.read_text())
    for field, factor in (("throughput_rps", 1.1), ("latency_s", 0.85)):
        edited = json.loads(planned.read_text())
        edited["prediction"][field] = plan["prediction"][field] * factor
        if field == "throughput_rps":  # a whole story, told consistently
            for name in ("objective_rps", "best_bound_rps"):
                edited["certificate"][name] *= factor
        (tmp_path / "edited.json").write_text(json.dumps(edited))
        status, _, errors = run("verify", str(tmp_path / "edited.json"), *given)
        assert status == 1
        assert f"plan.prediction.{field}: does not hold" in errors
        assert len(errors.splitlines()) == 1


def test_the_event_simulation_of_its_batches_agrees(run: Callable, tiny_weights: Path, planned: Path) -> None:
    prediction = plan_of(planned).prediction
    assert prediction is not None
    given = (f"--model={tiny_weights}", *made_from(planned.parent), "--nocorrected", "--requests=20000")
    status, out, errors = run("simulate", str(planned), *given)
    assert status == 0, errors
    assert last_line(out, "SIMULATE")["throughput_rps"] == pytest.approx(prediction.throughput_rps, rel=0.03)


@pytest.mark.parametrize("engine", ["fake", pytest.param("jax", marks=pytest.mark.full)])
def test_the_runner_runs_it_with_the_tokens_of_one_device(
    run: Callable, tiny_weights: Path, planned: Path, tmp_path: Path, engine: str
) -> None:
    """The real engine compiles for a minute; what it does with sides apart is shown on smaller plans elsewhere."""
    plan, trace = plan_of(planned), tmp_path / "trace.json"
    assert plan.schedule.policy == "waa"
    assert {stage.role for stage in plan.schedule.stages} == {"encode", "decode"}
    lines = [{"id": n, "prompt": [5 + n % 7] * (1 + n % 12), "max_tokens": 1 + n % 20} for n in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({**line, "ignore_eos": True}) + "\n" for line in lines))
    common = (f"--model={tiny_weights}", f"--input={tmp_path / 'in.jsonl'}", f"--engine={engine}")
    told = (f"--plan={planned}", f"--timeline={trace}", *made_from(planned.parent)[:2])
    status, _, errors = run("generate", *common, *told, f"--output={tmp_path / 'apart.jsonl'}")
    assert status == 0, errors
    found = json.loads(errors.splitlines()[-1].removeprefix("GENERATE "))
    assert plan.prediction is not None
    assert found["predicted_requests_per_s"] == pytest.approx(plan.prediction.expected.throughput_rps, rel=1e-5)
    assert found["phases"] > 10
    encodes, decodes = ([span["args"] for span in spans(trace) if span["cat"] == kind] for kind in ("encode", "decode"))
    assert {rows for args in encodes for rows, _ in args["calls"]} <= set(plan.buckets.encode_rows)
    assert {args["rows_bucket"] for args in decodes} <= set(plan.buckets.decode_rows)
    assert all(args["iterations"] == 1 for args in decodes)
    assert all(args["predicted_s"] > 0 for args in encodes + decodes)
    alone = ("--max_rows=8", f"--cache_tokens={plan.cache_tokens}", f"--max_prompt_tokens={plan.max_prompt_tokens}")
    assert run("generate", *common, *alone, f"--output={tmp_path / 'alone.jsonl'}")[0] == 0
    assert (tmp_path / "apart.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
