"""The planning commands end to end on a toy model, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solver.plan.plan import from_json
from tests.serving.planning_toy import inputs, last_line, planned, run, toy
from tests.serving.servers import environment, exegpt

__all__ = ["planned", "run", "toy"]

PLAN_KEYS = {
    "policy", "encode_batch", "decode_iterations", "decode_batch", "micro_batch", "stages", "throughput_rps",
    "latency_s", "bound_gap", "nodes", "seconds",
}  # fmt: skip


def test_plan_writes_a_plan_and_says_so(toy: Path, planned: Path, run: Callable) -> None:
    plan = from_json(planned.read_text())
    status, out, errors = run("plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra")
    assert status == 0
    found = last_line(out, "PLAN")
    assert set(found) >= PLAN_KEYS
    assert (found["policy"], found["encode_batch"]) == (plan.schedule.policy, plan.schedule.encode_batch)
    assert found["latency_s"] <= 0.2
    assert found["throughput_rps"] == plan.prediction.throughput_rps  # type: ignore[union-attr]
    assert "requests a second" in errors
    assert plan.inputs is not None
    assert plan.inputs.model.name == "toy"


def test_the_same_question_gives_the_same_bytes(toy: Path, planned: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    arguments = [*inputs(toy), "--latency_bound_s=0.2", "--policies=rra", f"--output={again}"]
    done = subprocess.run(
        exegpt("plan", *arguments), capture_output=True, text=True, timeout=120, check=False,
        env={**environment(), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == planned.read_bytes()


def test_a_plan_goes_through_standard_streams(
    toy: Path, planned: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    status, out, _ = run("plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra", "--output=-")
    assert status == 0
    assert out.startswith(planned.read_text())
    last_line(out, "PLAN")
    monkeypatch.setattr(sys, "stdin", io.StringIO(out))
    status, shown, _ = run("explain", "-", "--nosearch")
    assert status == 0
    assert "held back by" in shown or "none of them holds" in shown


def test_no_plan_is_status_2_and_one_line(toy: Path, tmp_path: Path, run: Callable) -> None:
    path = tmp_path / "plan.json"
    path.write_text("before")
    status, out, errors = run("plan", *inputs(toy), "--latency_bound_s=0.000001", "--policies=rra", f"--output={path}")
    assert status == 2
    assert out == ""
    assert errors.splitlines()[-1].startswith("exegpt: ")
    assert "latency" in errors.splitlines()[-1]
    assert path.read_text() == "before"


def test_planning_loads_neither_jax_nor_grpc(toy: Path) -> None:
    program = (
        "import sys; from serving import cli; status = cli.main(sys.argv[1:]);"
        "loaded = {name.partition('.')[0] for name in sys.modules} & {'jax', 'flax', 'grpc', 'matplotlib'};"
        "print(sorted(loaded), file=sys.stderr); sys.exit(status)"
    )
    arguments = ["plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, env=environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def _edit(toy: Path, tmp_path: Path, name: str, change: Callable[[dict], None]) -> Path:
    data = json.loads((toy / f"{name}.json").read_text())
    change(data)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(data))
    return path


def _cut(toy: Path, tmp_path: Path, name: str) -> Path:
    path = tmp_path / f"cut-{name}.json"
    text = (toy / f"{name}.json").read_text()
    path.write_text(text[: len(text) // 2])
    return path


def test_bad_input_is_one_line_and_nothing_is_written(toy: Path, tmp_path: Path, run: Callable) -> None:
    def negative(data: dict) -> None:
        data["pairs"]["output_tokens"][3] = -4

    def empty(data: dict) -> None:
        data["pairs"] = {"input_tokens": [], "output_tokens": []}

    def no_devices(data: dict) -> None:
        data["groups"][0]["hosts"] = 0

    def no_groups(data: dict) -> None:
        data["groups"] = []

    def nan_time(data: dict) -> None:
        data["dispatch_s"] = float("nan")

    cases: list[tuple[list[str], str]] = [
        (["--latency_bound_s=0"], "latency_bound_s: 0.0 is no bound"),
        (["--latency_bound_s=nan"], "latency_bound_s: nan is no bound"),
        (["--latency_bound_s=-3"], "latency_bound_s: -3.0 is no bound"),
        (["--latency_bound_s=soon"], "latency_bound_s"),
        (["--ttft_bound_s=0"], "ttft_bound_s: 0.0 is no bound"),
        (["--tpot_bound_s=nan"], "tpot_bound_s: nan is no bound"),
        (["--latency_percentile=0"], "latency_percentile: 0.0 is out of range"),
        (["--latency_percentile=nan"], "latency_percentile: nan is out of range"),
        (["--gap=-1"], "gap: -1.0 is out of range"),
        (["--gap=nan"], "gap: nan is out of range"),
        (["--margin=1"], "margin: 1.0 is out of range"),
        (["--time_limit_s=0"], "time_limit_s: 0.0 is no time"),
        (["--policies=rra,magic"], "policies: 'magic' is unknown"),
        (["--devices=0"], "devices: 0 of small"),
        (["--devices=5"], "devices: 5 of small"),
        (["--model=nothing"], "model: nothing: no such file, and no preset of models"),
        (["--cluster=nothing"], "cluster: nothing: no such file, and no preset of clusters"),
        (["--workload=nothing"], "workload: nothing: no such file, and no preset of workloads"),
        (["--workload="], "workload: not given"),
        ([f"--profile={toy / 'other.json'}"], "of another model"),
        ([f"--cluster={_edit(toy, tmp_path, 'cluster', no_devices)}"], "groups[0].hosts: 0 is out of range"),
        ([f"--workload={_edit(toy, tmp_path, 'workload', negative)}"], "output_tokens[3]: -4 is out of range"),
        ([f"--profile={_edit(toy, tmp_path, 'profile', nan_time)}"], "NaN is no finite number"),
        *(([f"--{n}={_cut(toy, tmp_path, n)}"], f"cut-{n}.json") for n in ("cluster", "profile", "workload")),
        ([f"--output={tmp_path}/no/folder/plan.json"], "output: "),
        ([f"--report={tmp_path}/r.png"], "report: "),
        (["stray"], "arguments: 'stray' is no flag"),
    ]  # fmt: skip
    other = tmp_path / "elsewhere"
    other.mkdir()
    cases += [
        ([f"--cluster={_edit(toy, other, 'cluster', no_groups)}"], "groups: 0 devices"),
        ([f"--workload={_edit(toy, other, 'workload', empty)}"], "input_tokens: is empty"),
    ]
    target = tmp_path / "plan.json"
    for arguments, complaint in cases:
        status, out, errors = run(
            "plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra", f"--output={target}", *arguments
        )
        assert (status, out) == (1, ""), arguments
        assert len(errors.splitlines()) == 1, arguments
        assert errors.startswith("exegpt: "), arguments
        assert complaint in errors, (arguments, errors)
        assert not target.exists(), arguments
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_explain_answers_every_question(toy: Path, planned: Path, run: Callable) -> None:
    status, out, errors = run("explain", str(planned), *inputs(toy))
    assert status == 0, errors
    for words in ("policy:", "Why not more", "To double the throughput:", "One more device:"):
        assert words in out
    found = last_line(out, "EXPLAIN")
    assert found["one_more_device_rps"] > 0
    plan = from_json(planned.read_text())
    assert plan.prediction is not None
    bound = found["doubling_latency_bound_s"]
    if bound is None:
        assert found["unbounded_rps"] < 2 * plan.prediction.throughput_rps
    else:
        status, again, _ = run("plan", *inputs(toy), f"--latency_bound_s={bound}", "--policies=rra")
        assert last_line(again, "PLAN")["throughput_rps"] >= 1.95 * plan.prediction.throughput_rps


def test_pareto_rises_and_is_drawn(toy: Path, tmp_path: Path, run: Callable) -> None:
    chart, front = tmp_path / "front.svg", tmp_path / "front.json"
    status, out, errors = run(
        "pareto", *inputs(toy), "--policies=rra", "--points=5", f"--report={chart}", f"--output={front}"
    )
    assert status == 0, errors
    points = last_line(out, "PARETO")["front"]
    assert [p["bound_s"] is None for p in points] == [False] * 4 + [True]
    rates = [p["throughput_rps"] for p in points]
    assert all(rate is not None for rate in rates)
    assert rates == sorted(rates)
    assert chart.read_text().lstrip().startswith("<?xml")
    assert json.loads(front.read_text())["best of all"] == points


@pytest.mark.parametrize(
    ("bounds", "complaint"), [("1,x", "'x' is no number"), ("0,1", "0 is no bound"), ("nan", "nan is no bound")]
)
def test_pareto_refuses_what_is_no_bound(toy: Path, run: Callable, bounds: str, complaint: str) -> None:
    status, _, errors = run("pareto", *inputs(toy), f"--bounds={bounds}")
    assert status == 1
    assert complaint in errors


def test_simulate_finds_what_is_predicted(toy: Path, planned: Path, tmp_path: Path, run: Callable) -> None:
    trace, page = tmp_path / "t.json", tmp_path / "r.html"
    status, out, errors = run(
        "simulate", str(planned), *inputs(toy), "--nocorrected", f"--timeline={trace}", f"--report={page}"
    )
    assert status == 0, errors
    found = last_line(out, "SIMULATE")
    plan = from_json(planned.read_text())
    assert plan.prediction is not None
    assert found["throughput_rps"] == pytest.approx(plan.prediction.throughput_rps, rel=0.02)
    assert {event["cat"] for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"} >= {
        "encode",
        "decode",
    }
    assert page.read_text().count("<figure") >= 3
    slow = f"--rate={plan.prediction.throughput_rps / 4}"
    status, out, errors = run("simulate", str(planned), *inputs(toy), slow, "--requests=3000")
    assert status == 0, errors
    found = last_line(out, "SIMULATE")
    assert found["latency_p99_from_arrival_s"] >= found["latency_p99_from_encode_s"]


def test_simulate_finds_the_highest_rate(toy: Path, planned: Path, tmp_path: Path, run: Callable) -> None:
    plan = from_json(planned.read_text())
    assert plan.prediction is not None
    assert plan.bounds is not None
    # Room above the latency without waits, so that there is a rate at all.
    bound_s = 1.5 * plan.prediction.latency_s
    bounded = tmp_path / "bounded.json"
    bounded.write_text(dataclasses.replace(plan, bounds=dataclasses.replace(plan.bounds, latency_s=bound_s)).to_json())
    status, out, errors = run("simulate", str(bounded), *inputs(toy), "--highest_rate", "--requests=20000")
    assert status == 0, errors
    found = last_line(out, "SIMULATE")
    assert 0 < found["highest_rate_rps"] < found["failed_rate_rps"] <= 1.01 * found["highest_rate_rps"]
    assert found["highest_rate_rps"] < 1.1 * plan.prediction.throughput_rps
    assert found["latency_p99_from_arrival_s"] <= bound_s
    failed = f"--rate={found['failed_rate_rps']}"
    status, out, errors = run("simulate", str(bounded), *inputs(toy), failed, "--requests=20000")
    assert status == 0, errors
    assert last_line(out, "SIMULATE")["latency_p99_from_arrival_s"] > bound_s
    bounded.write_text(dataclasses.replace(plan, bounds=dataclasses.replace(plan.bounds, latency_s=None)).to_json())
    status, _, errors = run("simulate", str(bounded), *inputs(toy), "--highest_rate")
    assert status == 1
    assert "highest_rate: the plan has no bound" in errors


def test_diff_shows_what_changed(toy: Path, planned: Path, tmp_path: Path, run: Callable) -> None:
    other = tmp_path / "other.json"
    plan = from_json(planned.read_text())
    other.write_text(dataclasses.replace(plan, replicas=3).to_json())
    status, out, _ = run("diff", str(planned), str(other))
    assert status == 0
    assert last_line(out, "DIFF") == {"fields": ["replicas"], "equal": False}
    assert "+200.00%" in out
    status, out, _ = run("diff", str(planned), str(planned))
    assert last_line(out, "DIFF")["equal"] is True
    status, _, errors = run("diff", str(planned))
    assert status == 1
    assert "1 given; name 2" in errors


@pytest.mark.parametrize("command", ["explain", "simulate", "verify"])
def test_what_is_no_plan_is_one_line(command: str, tmp_path: Path, planned: Path, run: Callable) -> None:
    text = planned.read_text()
    for content, complaint in (
        (text[: len(text) // 2], "no valid JSON"),
        ("", "no valid JSON"),
        (text.replace('"policy": "rra"', '"policy": "magic"'), "plan.schedule.policy: 'magic'"),
        (text.replace('"replicas": 1', '"replicas": NaN'), "NaN is no finite number"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(content)
        status, _, errors = run(command, str(path))
        assert status == 1
        assert len(errors.splitlines()) == 1
        assert str(path) in errors
        assert complaint in errors
    status, _, errors = run(command, str(tmp_path / "absent.json"))
    assert status == 1
    assert "absent.json: no such file" in errors
