"""`exegpt verify` on a plan of the planner: it holds, and whatever is edited is caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from solver.facts.cluster_file import read_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.profile_file import read_profile
from solver.facts.workload_file import load_workload
from solver.plan.plan import from_json
from solver.verify.checks import derive_plan
from solver.verify.stage_times import setting_of
from tests.serving.planning_toy import inputs, last_line, planned, run, toy

__all__ = ["planned", "run", "toy"]


def test_verify_accepts_the_plan_and_catches_what_is_edited(
    toy: Path, planned: Path, tmp_path: Path, run: Callable
) -> None:
    status, out, errors = run("verify", str(planned), *inputs(toy), "--candidates=100")
    assert status == 0, errors
    found = last_line(out, "VERIFY")
    assert found["holds"] is True
    assert found["checks"] > 15
    plan = json.loads(planned.read_text())
    edits: list[tuple[tuple, object, str]] = [
        (("certificate", "gap"), plan["certificate"]["gap"] + 0.01, "certificate: gap"),
        (("certificate", "best_bound_rps"), plan["certificate"]["best_bound_rps"] * 1.1, "certificate: gap"),
        (("prediction", "throughput_rps"), plan["prediction"]["throughput_rps"] * 1.01, "throughput_rps"),
        (("prediction", "latency_s"), plan["prediction"]["latency_s"] * 0.99, "latency_s"),
        (("schedule", "stages", 0, "layers"), [0, 3], "schedule.stages"),
        (("schedule", "decode_iterations"), plan["schedule"]["decode_iterations"] + 1, "prediction"),
        (("inputs", "workload", "digest"), "0" * 64, "plan.inputs.workload"),
        (("inputs", "profiles", 0, "digest"), "0" * 64, "plan.inputs.profile"),
        (("inputs", "model", "digest"), "0" * 64, "plan.inputs.model"),
        (("inputs", "cluster", "digest"), "0" * 64, "plan.inputs.cluster"),
        (("inputs", "solver_version"), "0", "plan.inputs.solver_version"),
        (("prediction",), None, "plan.prediction: null"),
        (("memory", 0, "weights_bytes"), plan["memory"][0]["weights_bytes"] - 50_000, "memory[0].weights_bytes"),
    ]
    for path, value, complaint in edits:
        data = json.loads(planned.read_text())
        inner = data
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps(data))
        status, _, errors = run("verify", str(edited), *inputs(toy), "--candidates=0")
        assert status == 1, path
        assert len(errors.splitlines()) == 1, (path, errors)
        assert complaint in errors, (path, errors)


def test_verify_catches_a_bound_below_what_can_be_reached(
    toy: Path, planned: Path, tmp_path: Path, run: Callable
) -> None:
    """A poor plan that calls itself proven: its own figures are right, but something better is found."""
    data = json.loads(planned.read_text())
    poor = from_json(planned.read_text())
    data["schedule"] |= {"encode_batch": 1, "encode_micro_batch": 1}
    plan = from_json(json.dumps(data))
    spec, workload = read_model_spec(toy / "toy"), load_workload(str(toy / "workload.json"))
    cluster = read_cluster(toy / "cluster.json")
    own = derive_plan(plan, spec, setting_of(spec, cluster, [read_profile(toy / "profile.json")], workload), workload)
    assert poor.prediction is not None
    claims = {name: getattr(own, name) for name in ("throughput_rps", "latency_s", "ttft_s", "tpot_s", "encode_s")}
    claims |= {name: getattr(own, name) for name in ("period_s", "decode_phase_s", "decode_batch")}
    data["prediction"] |= claims
    data["certificate"] |= {"objective_rps": own.throughput_rps, "best_bound_rps": own.throughput_rps, "gap": 0.0,
                            "ended": "proven"}  # fmt: skip
    data["runners_up"] = []
    path = tmp_path / "poor.json"
    path.write_text(json.dumps(data))
    status, _, errors = run("verify", str(path), *inputs(toy), "--candidates=100")
    assert status == 1
    assert "certificate.best_bound_rps: does not hold: the best of" in errors


# OPT-13B on 4 A40 under ExeGPT's middle bound.
BASELINES = ("--model=opt-13b", "--cluster=paper-a40-48", "--devices=4", "--workload=paper-s", "--latency_bound_s=11.5")


@pytest.mark.parametrize("policy", ["chunked", "disaggregated", "iteration", "static", "waa"])
def test_verify_accepts_what_the_event_simulation_seconds(tmp_path: Path, run: Callable, policy: str) -> None:
    """Memory is counted from the plan alone, figures are simulated; chunked has two stages here."""
    path = tmp_path / "plan.json"
    status, _, errors = run("plan", *BASELINES, f"--policies={policy}", f"--output={path}")
    assert status == 0, errors
    assert policy != "chunked" or len(from_json(path.read_text()).schedule.stages) > 1
    status, out, errors = run("verify", str(path))
    assert status == 0, errors
    assert last_line(out, "VERIFY")["holds"] is True


def test_verify_catches_pipelines_of_a_side_that_are_not_there(tmp_path: Path, run: Callable) -> None:
    path = tmp_path / "plan.json"
    status, _, errors = run("plan", *BASELINES, "--policies=disaggregated", f"--output={path}")
    assert status == 0, errors
    data = json.loads(path.read_text())
    assert data["schedule"]["encode_replicas"] == 2
    data["schedule"]["decode_replicas"] += 1
    path.write_text(json.dumps(data))
    status, _, errors = run("verify", str(path))
    assert status == 1
    assert "schedule.stages.devices: does not hold" in errors
