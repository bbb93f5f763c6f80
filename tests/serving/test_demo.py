"""The demo as a person runs it, with the embedded model and with a broken one."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

from exegpt_jax.testing import numbers_task as task
from serving.demo import report
from serving.demo.messages import Message, Trial, parse
from serving.demo.tuning import candidates
from serving.load import LoadResult

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.cli", "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def machine_line(output: str) -> dict[str, float]:
    last = output.strip().splitlines()[-1]
    assert last.startswith("DEMO ")
    return json.loads(last.removeprefix("DEMO "))


def test_demo_answers_right_under_both_schedules(numbers_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    picture = tmp_path / "demo.svg"
    done = run_demo("--requests=150", "--max_rows=12", f"--picture={picture}")
    assert done.returncode == 0, done.stderr
    fields = machine_line(done.stdout)
    assert fields["requests"] == 150
    assert fields["correct"] >= 147
    assert fields["static_correct"] >= 147
    assert fields["rra_requests_per_s"] > 0
    assert fields["static_requests_per_s"] > 0
    assert 0 < fields["p99_s"] < 60
    assert "right answers" in done.stdout
    assert picture.read_text().startswith("<svg")


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
    done = run_demo("--requests=60", "--max_rows=12", f"--model={broken}")
    assert done.returncode == 1
    assert machine_line(done.stdout)["correct"] < 59
    assert "answers are right, 98% are needed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_demo_says_in_one_line_that_a_model_is_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run_demo(f"--model={tmp_path}")
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


@pytest.mark.parametrize(("wrong", "passes"), [(2, True), (3, False)])
def test_two_in_a_hundred_may_be_wrong(wrong: int, passes: bool) -> None:
    numbers = tuple(range(100, 200))
    results = tuple(result("wrong" if i < wrong else task.words(n)) for i, n in enumerate(numbers))
    outcome = report.Outcome(Trial("rra", 4, 4, 1.0), numbers, results)
    assert (report.complaint([outcome]) is None) is passes


def test_one_failed_request_fails_the_demo() -> None:
    outcome = report.Outcome(Trial("static", 4, 4, 1.0), (7,), (result("", error="UNAVAILABLE: gone"),))
    assert "UNAVAILABLE" in str(report.complaint([outcome]))


def test_messages_survive_the_pipe(tmp_path: pathlib.Path) -> None:
    trial = Trial("rra", 4, 3, 12.5)
    sent = Message("tuned", "text with \n a line", (trial,), (trial,))
    path = tmp_path / "pipe"
    with path.open("w") as stream:
        sent.send(stream)
    lines = path.read_text().splitlines()
    assert [parse(line) for line in lines] == [sent]


def test_both_schedules_may_use_every_row() -> None:
    for rows in (4, 12, 24, 32):
        tried = candidates(rows)
        assert all(1 <= trial.encode_batch <= rows for trial in tried)
        assert max(trial.encode_batch for trial in tried if trial.policy == "static") == rows
