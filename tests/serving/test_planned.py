"""`generate --plan` and `serve --plan`: a plan is run exactly, what contradicts it is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving import cli
from serving.flags.shared import SCHEDULE_FLAGS
from serving.load import LoadRequest, run_load
from solver.facts import cluster_file, profile_file, workload_file
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.workload import merge
from solver.plan.plan import from_json
from solver.plan.schedule import StageSpec
from tests.serving.as_planned import check_run_as_planned
from tests.serving.in_process import forget_flags
from tests.serving.planning_toy import run as run
from tests.serving.servers import server_process
from tests.solver.planner_cases import random_profile


def make_plan(model: Path, folder: Path, lengths: tuple[range, range], memory_bytes: int) -> Path:
    """A plan of `exegpt plan` for the model on one CPU device with little memory, from a profile of made-up times."""
    cluster = load_cluster("cpu")
    kind = dataclasses.replace(cluster.kinds[0], memory_bytes=memory_bytes)
    (folder / "cluster.json").write_text(cluster_file.to_text(dataclasses.replace(cluster, name="my", kinds=(kind,))))
    spec = read_model_spec(model)
    rng = np.random.default_rng(1)
    profile = random_profile(rng, spec, tensors=(1,), shape=profile_file.shape_digest(spec), padded=True)
    profile_file.write_profile(dataclasses.replace(profile, device_kind="cpu"), folder / "profile.json")
    pairs = np.meshgrid(np.array(lengths[0]), np.array(lengths[1]), indexing="ij")
    workload = merge("toy", "made up", pairs[0].ravel(), pairs[1].ravel(), np.ones(pairs[0].size))
    (folder / "workload.json").write_text(workload_file.to_text(workload_file.file_of(workload, "made up")))
    made_from = [f"--{name}={folder / f'{name}.json'}" for name in ("cluster", "profile", "workload")]
    asked = ("--policies=rra", "--latency_bound_s=10", "--gap=0.05", f"--output={folder / 'plan.json'}")
    forget_flags("plan")
    assert cli.main(["plan", f"--model={model}", *made_from, *asked]) == 0
    return folder / "plan.json"


@pytest.fixture(scope="module")
def planned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside it lie its cluster, profile and workload."""
    return make_plan(tiny_model, tmp_path_factory.mktemp("planned"), (range(4, 40, 6), range(1, 30, 4)), 2**20)


def edited(path: Path, folder: Path, **changes: object) -> Path:
    """The plan with other fields."""
    changed = folder / "edited.json"
    changed.write_text(dataclasses.replace(from_json(path.read_text()), **changes).to_json())  # type: ignore[arg-type]
    return changed


def requests_file(folder: Path, count: int) -> Path:
    path = folder / "in.jsonl"
    lines = [{"id": n, "prompt": [5 + n % 7] * (1 + n % 30), "max_tokens": 1 + n % 29} for n in range(count)]
    path.write_text("".join(json.dumps({**line, "ignore_eos": True}) + "\n" for line in lines))
    return path


def summary(errors: str) -> dict:
    return json.loads(errors.splitlines()[-1].removeprefix("GENERATE "))


def test_generate_runs_the_plan_and_tells_both_figures(
    run: Callable, tiny_model: Path, planned: Path, tmp_path: Path
) -> None:
    plan, trace = from_json(planned.read_text()), tmp_path / "trace.json"
    source = requests_file(tmp_path, 400)
    common = (f"--model={tiny_model}", f"--input={source}", "--engine=fake", "--fake_step_s=0.0002")
    told = (f"--plan={planned}", f"--profile={planned.parent / 'profile.json'}", f"--timeline={trace}")
    status, _, errors = run("generate", *common, *told, f"--output={tmp_path / 'planned.jsonl'}")
    assert status == 0, errors
    found = summary(errors)
    assert plan.prediction is not None
    assert found["predicted_requests_per_s"] == pytest.approx(plan.prediction.expected.throughput_rps, rel=1e-5)
    assert found["predicted_latency_s"] == pytest.approx(plan.prediction.expected.latency_s, rel=1e-5)
    for name in ("requests_per_s", "latency_s"):
        error = found[f"predicted_{name}"] / found[f"measured_{name}"] - 1
        assert found[f"{name}_error"] == pytest.approx(error, rel=1e-3, abs=1e-4)
    assert found["latency_bound_s"] == 10
    assert found["bound_kept"] is True
    assert found["phases"] > 10
    assert found["phase_error"] > 0
    assert "predicted" in errors
    check_run_as_planned(trace, plan)
    assert run("generate", *common, "--max_rows=9", f"--output={tmp_path / 'flags.jsonl'}")[0] == 0
    assert (tmp_path / "planned.jsonl").read_bytes() == (tmp_path / "flags.jsonl").read_bytes()


def test_phases_are_not_predicted_where_the_profile_is_not_at_hand(
    run: Callable, tiny_model: Path, planned: Path, tmp_path: Path
) -> None:
    source = requests_file(tmp_path, 40)
    flags = (f"--model={tiny_model}", f"--input={source}", f"--output={tmp_path / 'out'}", "--engine=fake")
    status, _, errors = run("generate", *flags, f"--plan={planned}")
    assert status == 0
    assert "no phase is predicted: name the profile of cpu with --profile" in errors
    assert (summary(errors)["phases"], summary(errors)["phase_error"]) == (0, None)
    assert summary(errors)["predicted_requests_per_s"] > 0


def test_a_run_of_flags_measures_and_predicts_nothing(run: Callable, tiny_model: Path, tmp_path: Path) -> None:
    source = requests_file(tmp_path, 40)
    status, _, errors = run(
        "generate", f"--model={tiny_model}", f"--input={source}", f"--output={tmp_path / 'out'}", "--engine=fake"
    )
    assert status == 0
    assert summary(errors)["predicted_requests_per_s"] is None
    assert summary(errors)["measured_latency_s"] > 0


GIVEN = {"policy": "rra", "dtype": "float32"}


@pytest.mark.parametrize("flag", SCHEDULE_FLAGS)
def test_flags_of_the_schedule_contradict_a_plan(run: Callable, tiny_model: Path, planned: Path, flag: str) -> None:
    common = (f"--model={tiny_model}", f"--plan={planned}", "--engine=fake", f"--{flag}={GIVEN.get(flag, 2)}")
    for command in (("generate", "--input=-", "--output=-"), ("serve", "--address=127.0.0.1:0")):
        status, _, errors = run(*command, *common)
        assert status == 1
        assert errors.startswith(f"exegpt: {flag}: {GIVEN.get(flag, 2)} given beside --plan")
        assert len(errors.splitlines()) == 1


REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "checkpoint": ({"model": "ab" * 32}, "model: the plan is of checkpoint abababababab, "),
    "dtype": ({"dtype": "float16"}, "dtype: the plan says float16, this engine has float32 and bfloat16"),
    "pages": ({"cache_layout": "paged"}, "cache_layout: the plan says paged, this engine does slots"),
    "copies": ({"replicas": 2}, "replicas: the plan runs 2 copies, one process runs 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_by_name(
    run: Callable, tiny_model: Path, planned: Path, tmp_path: Path, case: str
) -> None:
    changes, line = REFUSALS[case]
    path = edited(planned, tmp_path, **changes)
    flags = (f"--model={tiny_model}", f"--plan={path}", "--engine=fake", "--input=-", "--output=-")
    status, out, errors = run("generate", *flags)
    assert (status, out) == (1, "")
    assert errors.startswith(f"exegpt: {path}: {line}")
    assert len(errors.splitlines()) == 1


def test_a_plan_of_another_model_is_refused(run: Callable, numbers_model: Path, planned: Path) -> None:
    flags = (f"--model={numbers_model}", f"--plan={planned}", "--engine=fake", "--input=-", "--output=-")
    status, _, errors = run("generate", *flags)
    assert status == 1
    assert errors.startswith(f"exegpt: {planned}: inputs.model.digest: the plan was made for tiny_model")
    assert str(numbers_model) in errors


def test_a_plan_for_other_devices_is_refused(run: Callable, tiny_model: Path, planned: Path, tmp_path: Path) -> None:
    """The suite's jax has eight CPU devices."""
    plan = from_json(planned.read_text())
    far = dataclasses.replace(plan.schedule, stages=(StageSpec("both", (0, 2), (8,), 1),))
    a100 = (dataclasses.replace(plan.memory[0], device_kind="a100-80g"),)
    for changes, line in (
        ({"schedule": far}, "schedule.stages: the plan needs 9 devices, 8 are here"),
        ({"memory": a100}, "memory[0].device_kind: the plan is for a100-80g, device 0 is cpu"),
    ):
        path = edited(planned, tmp_path, **changes)
        status, _, errors = run("generate", f"--model={tiny_model}", f"--plan={path}", "--input=-", "--output=-")
        assert status == 1
        assert errors.startswith(f"exegpt: {path}: {line}")
        assert len(errors.splitlines()) == 1


def test_profiles_must_be_the_plans(run: Callable, tiny_model: Path, planned: Path, tmp_path: Path) -> None:
    own = profile_file.read_profile(planned.parent / "profile.json")
    profile_file.write_profile(dataclasses.replace(own, spread=0.5), tmp_path / "slower.json")
    profile_file.write_profile(dataclasses.replace(own, device_kind="tpu"), tmp_path / "tpu.json")
    common = (f"--model={tiny_model}", "--engine=fake", "--input=-", "--output=-")
    for flags, line in (
        ((f"--plan={planned}", f"--profile={tmp_path / 'slower.json'}"), "profile: the plan was made from toy"),
        ((f"--plan={planned}", f"--profile={tmp_path / 'tpu.json'}"), f"profile: {tmp_path / 'tpu.json'} is of device"),
        ((f"--profile={planned.parent / 'profile.json'}",), "profile: given without --plan"),
        (("--plan=-",), "plan: - and --input=- would both read standard input"),
        ((f"--plan={tmp_path / 'none.json'}",), f"plan: {tmp_path / 'none.json'}: no such file"),
    ):
        status, _, errors = run("generate", *common, *flags)
        assert status == 1
        assert errors.splitlines()[-1].startswith(f"exegpt: {line}")


def test_serve_runs_a_plan_and_tells_both_figures_when_it_stops(
    tiny_model: Path, planned: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    told = (f"--plan={planned}", f"--profile={planned.parent / 'profile.json'}", f"--timeline={trace}")
    with server_process(tiny_model, "--engine=fake", "--fake_step_s=0.001", *told) as server:
        asked = [LoadRequest([5, 6, 7], {"max_tokens": 29, "ignore_eos": True}) for _ in range(100)]
        assert not any(result.error for result in run_load(server.address, asked))
        server.terminate()
        status, out, _ = server.finish()
    assert status == 0
    told_last, stopped = out.splitlines()[-2:]
    assert stopped == "stopped"
    found = json.loads(told_last.removeprefix("SERVE "))
    assert found["requests"] == 100
    assert found["predicted_requests_per_s"] > 0 < found["measured_requests_per_s"]
    assert found["phases"] > 0
    check_run_as_planned(trace, from_json(planned.read_text()))
