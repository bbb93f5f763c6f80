"""The demo as a person runs it, with the embedded model and with a broken one."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exegpt_jax.testing import numbers_task as task
from serving.demo import report
from serving.demo.baselines import BASELINES, baseline_plan, read_settings
from serving.demo.lengths import bound_s, workload
from serving.demo.messages import Figures, Message, Order, parse, parse_order
from serving.demo.process import cache_folder
from serving.load import LoadResult
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile, Table
from solver.facts.profile_file import shape_digest, write_profile
from solver.plan.plan import Plan, from_json
from tests.serving.as_planned import check_run_as_planned
from tests.serving.servers import exegpt
from tests.solver.planner_cases import random_profile

ROOT = pathlib.Path(__file__).resolve().parents[2]


# Half of these runs' time is compiling; less care there costs small programs nothing.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.cli", "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=ENVIRONMENT)


def machine_line(output: str) -> dict[str, float]:
    last = output.strip().splitlines()[-1]
    assert last.startswith("DEMO ")
    return json.loads(last.removeprefix("DEMO "))


def made_up_profile(model: pathlib.Path, folder: pathlib.Path) -> str:
    """As the flag that spares measuring."""
    spec = read_model_spec(model)
    profile = random_profile(
        np.random.default_rng(0), spec, tensors=(1,), padded=True, kind="cpu", shape=shape_digest(spec)
    )
    write_profile(profile, folder / "made_up.json")
    return f"--profile={folder / 'made_up.json'}"


def test_demo_plans_and_runs_the_plan_beside_its_baselines(
    numbers_model: pathlib.Path, tmp_path: pathlib.Path, full: bool
) -> None:
    """In full it measures the model and runs every baseline."""
    picture, folder = tmp_path / "demo.svg", tmp_path / "demo"
    small = ("--baselines=static", made_up_profile(numbers_model, tmp_path), "--max_rows=4")
    how = ("--measure", "--max_rows=12") if full else small
    done = run_demo("--requests=150", *how, f"--picture={picture}", f"--folder={folder}")
    assert done.returncode == 0, done.stderr
    fields = machine_line(done.stdout)
    assert fields["requests"] == 150
    assert fields["correct"] >= 147
    for policy in ("rra", *(BASELINES if full else ("static",))):
        assert fields[f"{policy}_correct"] >= 147
        assert fields[f"{policy}_requests_per_s"] > 0
        assert 0 < fields[f"{policy}_latency_p99_s"] <= fields[f"{policy}_p99_s"]
    assert 0 < fields["p99_s"] < 60
    assert fields["bound_kept"] == (fields["rra_latency_p99_s"] <= fields["bound_s"])
    plan = from_json((folder / "plan-rra.json").read_text())
    assert plan.bounds is not None
    assert plan.bounds.latency_s == fields["bound_s"]
    assert plan.prediction is not None
    assert fields["predicted_requests_per_s"] == pytest.approx(plan.prediction.expected.throughput_rps, rel=1e-5)
    assert fields["predicted_p99_s"] == pytest.approx(plan.prediction.expected.latency_s, rel=1e-5)
    assert (fields["rra_encode_batch"], fields["rra_decode_iterations"]) == (
        plan.schedule.encode_batch,
        plan.schedule.decode_iterations,
    )
    assert fields["phase_error"] > 0
    assert "policy: every device encodes and decodes in turn" in done.stdout
    assert "right answers" in done.stdout
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "Latency beside the bound" in page
    assert picture.read_text().startswith("<svg")
    check_generate_runs_it(numbers_model, folder, plan)


LONG = range(123_456_789, 923_456_789, 13_333_337)


def check_generate_runs_it(model: pathlib.Path, folder: pathlib.Path, plan: Plan) -> None:
    """`generate --plan` on the real engine, whose programs the demo has left; answers are longer than a phase."""
    source, target, trace = (folder / name for name in ("in.jsonl", "out.jsonl", "trace.json"))
    lines = [{"id": number, "prompt": task.prompt(number), "max_tokens": 15} for number in LONG]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        exegpt(
            "generate", f"--model={model}", f"--plan={folder / 'plan-rra.json'}", f"--input={source}",
            f"--profile={folder / 'profile.json'}", f"--output={target}", f"--timeline={trace}",
            f"--compilation_cache={cache_folder('programs')}",
        ),
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["text"] for line in target.read_text().splitlines()]
    assert sum(answer == task.words(number) for answer, number in zip(answers, LONG, strict=True)) >= 57
    check_run_as_planned(trace, plan)


def test_demo_fails_with_a_layer_removed(numbers_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(numbers_model, broken)
    config = json.loads((broken / "config.json").read_text())
    gone = config["num_hidden_layers"] - 1
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": gone}))
    tensors = {
        name: value for name, value in load_file(broken / "model.safetensors").items() if f".{gone}." not in name
    }
    save_file(tensors, broken / "model.safetensors")
    small = ("--baselines=", made_up_profile(broken, tmp_path), "--max_rows=4")
    done = run_demo("--requests=60", *small, f"--model={broken}", f"--folder={tmp_path / 'demo'}")
    assert done.returncode == 1
    assert machine_line(done.stdout)["correct"] < 59
    assert "answers are right, 98% are needed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_demo_says_in_one_line_that_a_model_is_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run_demo(f"--model={tmp_path}", f"--folder={tmp_path / 'demo'}")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def result(text: str, *, reason: str | None = "stop", error: str | None = None) -> LoadResult:
    return LoadResult(0, 0.0, 0.0, 0.1, 0.2, text, (1, 2), reason, error, 0.1)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (result("one hundred"), True),
        (result("one hundred", reason="length"), False),
        (result("one hundred", error="UNAVAILABLE: gone"), False),
        (result("one hundred one"), False),
    ],
)
def test_only_exact_words_ended_by_the_model_are_right(given: LoadResult, right: bool) -> None:
    assert report.is_right(100, given) is right


FIELDS: dict[str, object] = {
    "latency_percentile": 99.0,
    "predicted_requests_per_s": 100.0,
    "measured_requests_per_s": 110.0,
    "requests_per_s_error": -0.0909,
    "predicted_latency_s": 0.2,
    "measured_latency_s": 0.25,
    "latency_s_error": -0.2,
    "phase_error": 0.03,
    "phases_error": 0.01,
}


def outcome(policy: str, results: tuple[LoadResult, ...], latency_s: float = 0.1) -> report.Outcome:
    numbers = tuple(range(100, 100 + len(results)))
    plan = baseline_plan(read_settings().get(policy, read_settings()["static"]), spec_of_numbers(), workload(), 32)
    figures = Figures(FIELDS, latency_s, ("measured 110 requests/s",), ({**ENTRY},))
    return report.Outcome(policy, plan, numbers, results, figures)


ENTRY: dict[str, object] = {
    **{"phase": 0, "kind": "decode", "stage": 0, "dispatched_s": 0.0, "ready_s": 0.1, "rows": 3, "tokens": 9},
    **{"iterations": 3, "rows_bucket": 4, "tokens_bucket": 26, "calls": [], "predicted_s": 0.09},
}


def spec_of_numbers() -> ModelSpec:
    return read_model_spec(ROOT / "configs" / "demo" / "numbers")


@pytest.mark.parametrize(("wrong", "passes"), [(2, True), (3, False)])
def test_two_in_a_hundred_may_be_wrong(wrong: int, passes: bool) -> None:
    results = tuple(result("wrong" if i < wrong else task.words(100 + i)) for i in range(100))
    assert (report.complaint([outcome("rra", results)]) is None) is passes


def test_one_failed_request_fails_the_demo() -> None:
    failed = outcome("chunked", (result("", error="UNAVAILABLE: gone"),))
    assert "UNAVAILABLE" in str(report.complaint([outcome("rra", (result("one hundred"),)), failed]))


def test_the_machine_line_keeps_its_keys_and_says_whether_the_bound_was_kept() -> None:
    right = (result("one hundred"),)
    outcomes = [
        outcome("rra", right),
        outcome("static", right, 0.4),
        outcome("iteration", right),
        outcome("chunked", right),
    ]
    line = report.machine_line(outcomes, 0.3, 12.34)
    kept = {"requests", "correct", "rra_requests_per_s", "static_requests_per_s", "p99_s"}
    added = {
        "bound_s",
        "predicted_requests_per_s",
        "predicted_p99_s",
        "iteration_requests_per_s",
        "chunked_requests_per_s",
    }
    assert kept | added <= set(line)
    assert (line["requests"], line["correct"], line["bound_s"], line["bound_kept"]) == (1, 1, 0.3, True)
    assert (line["predicted_p99_s"], line["measured_p99_s"], line["p99_s_error"]) == (0.2, 0.25, -0.2)
    assert (line["rra_latency_p99_s"], line["static_latency_p99_s"]) == (0.1, 0.4)
    assert line["gain_over_chunked"] == 1.0
    assert json.loads(json.dumps(line)) == line
    told = "\n".join(report.conclusions(outcomes, 0.3))
    assert "The bound of 300 ms is kept: p99 is 100 ms." in told
    assert "1.00 times static batching (which misses the bound)" in told
    assert "MISSED" in "\n".join(report.conclusions(outcomes, 0.05))


def test_orders_and_messages_survive_the_pipe(tmp_path: pathlib.Path) -> None:
    figures = Figures(FIELDS, 0.1, ("a line", "and \n another"), (ENTRY,))
    sent = [Message("say", "text with \n a line"), Message("stopped", figures=figures)]
    orders = [Order("serve", ("--model=numbers", "--plan=plan.json")), Order("again"), Order("stop")]
    path = tmp_path / "pipe"
    with path.open("w") as stream:
        for said in (*sent, *orders):
            said.send(stream)
    lines = path.read_text().splitlines()
    assert [parse(line) for line in lines[:2]] == sent
    assert [parse_order(line) for line in lines[2:]] == orders
    (entry,) = figures.timeline()
    assert (entry.kind, entry.predicted_s) == ("decode", 0.09)


def test_baselines_are_plans_for_any_number_of_rows() -> None:
    spec, asked = spec_of_numbers(), workload()
    assert (asked.most_input, asked.most_output) == (11, 15)
    for rows in (4, 12, 24, 128):
        for policy, setting in read_settings().items():
            schedule = baseline_plan(setting, spec, asked, rows).schedule
            assert schedule.policy == policy
            assert schedule.encode_batch <= schedule.max_rows <= rows


def test_the_bound_suits_the_machine() -> None:
    """On a machine that takes twice as long for everything the bound is twice as long."""
    spec, asked, cluster = spec_of_numbers(), workload(), load_cluster("cpu")
    profile = random_profile(np.random.default_rng(0), spec, tensors=(1,), padded=True, kind="cpu")
    once = bound_s(profile, spec, cluster, asked, 32)
    assert bound_s(slowed(profile, 2.0), spec, cluster, asked, 32) == pytest.approx(2 * once, rel=0.01)
    assert bound_s(dataclasses.replace(profile, spread=0.5), spec, cluster, asked, 32) == pytest.approx(
        once * 1.5 / 1.02, rel=0.02
    )
    assert bound_s(profile, spec, cluster, asked, 64) > once


def slowed(profile: Profile, factor: float) -> Profile:
    def table(times: Table) -> Table:
        return dataclasses.replace(times, seconds=factor * times.seconds)

    return dataclasses.replace(
        profile,
        dispatch_s=factor * profile.dispatch_s,
        phase_s=factor * profile.phase_s,
        layers=tuple(dataclasses.replace(x, encode=table(x.encode), decode=table(x.decode)) for x in profile.layers),
        ends=tuple(dataclasses.replace(x, embed=table(x.embed), head=table(x.head)) for x in profile.ends),
    )
