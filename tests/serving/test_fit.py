"""`exegpt fit` as a command: every source, what is shown, what is written, and one line for what is wrong."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from solver.facts.workload_file import load_file, load_workload
from tests.serving.in_process import call, refusal

MOMENTS = [
    *("--input_mean=256", "--input_std=252", "--input_max=512", "--input_moments=parent"),
    *("--output_mean=32", "--output_std=13", "--output_max=80", "--moments=truncated"),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """1,000 requests of which two stand out of order."""
    rng = np.random.default_rng(4)
    at = np.sort(rng.uniform(0, 500, 1000))
    at[[10, 11]], at[[500, 501]] = at[[11, 10]], at[[501, 500]]
    path = tmp_path / "log.csv"
    lengths = rng.integers(1, 100, (1000, 2))
    path.write_text("p,g,when\n" + "".join(f"{i},{s},{t:.6f}\n" for (i, s), t in zip(lengths, at, strict=True)))
    return path


def columns(log: Path) -> list[str]:
    return [f"--trace={log}", "--input_column=p", "--output_column=g"]


def test_a_trace_with_times(tmp_path: Path, capsys: pytest.CaptureFixture[str], log: Path) -> None:
    output = tmp_path / "made.json"
    arguments = [*columns(log), "--arrival_column=when", f"--output={output}", "--licence=mine", "--source=my log"]
    status, out, error = call(capsys, "fit", *arguments)
    assert (status, error) == (0, "")
    assert "1,000 requests in" in out
    assert "2 requests stood before their predecessor in time; sorted by when" in out
    assert "drift of the mean output over 12 windows" in out
    file = load_file(str(output))
    assert (file.name, file.source, file.licence) == ("log", "my log", "mine")
    made = load_workload(str(output))
    rows = np.loadtxt(log, delimiter=",", skiprows=1)
    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    assert made.trace is not None
    assert made.trace.arrival_s == pytest.approx(rows[:, 2] - rows[0, 2], abs=2e-6)
    assert (made.trace.output_tokens == rows[:, 1]).all()
    assert f"{rows[:, 0].mean():.1f}" in out
    assert f"correlation of input and output length: {np.corrcoef(rows[:, 0], rows[:, 1])[0, 1]:.3f}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "made.json"]


def test_a_trace_without_times(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    status, out, _ = call(capsys, "fit", *columns(log))
    assert status == 0
    assert "trace: 1,000 requests\n" in out


def test_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made.json"
    status, out, _ = call(capsys, "fit", *MOMENTS, "--correlation=0.2", f"--output={output}", "--name=mine")
    assert status == 0
    assert "correlation of input and output length: 0.200" in out
    made, paper = load_workload(str(output)), load_workload("paper-s")
    assert made.name == "mine"
    assert made.output_percentile(99) == 63
    assert made.mean_input == pytest.approx(paper.mean_input)
    assert made.correlation == pytest.approx(0.2, abs=2e-3)


def test_histograms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths, pairs, output = (tmp_path / name for name in ("one.csv", "two.csv", "made.json"))
    lengths.write_text("length,count\n10,3\n20,1\n")
    pairs.write_text("input_tokens,output_tokens,count\n10,5,3\n20,7,1\n")
    sides = [f"--input_histogram={lengths}", f"--output_histogram={lengths}"]
    assert call(capsys, "fit", *sides, f"--output={output}")[0] == 0
    assert load_workload(str(output)).probability == pytest.approx([9 / 16, 3 / 16, 3 / 16, 1 / 16])
    assert call(capsys, "fit", f"--histogram={pairs}", f"--output={output}")[0] == 0
    assert load_workload(str(output)).probability == pytest.approx([3 / 4, 1 / 4])


def test_presets_are_shown_and_joined_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "fit", "--workload=paper-t")
    assert status == 0
    assert "│ output │ 128.5 │" in out
    output = tmp_path / "made.json"
    assert call(capsys, "fit", "--workload=paper-t", "--correlation=0.6", f"--output={output}")[0] == 0
    made = load_file(str(output))
    assert made.moments is not None
    assert made.moments.correlation == 0.6
    assert made.licence == load_file("paper-t").licence
    assert load_workload(str(output)).correlation == pytest.approx(0.6, abs=1e-3)


def test_standard_streams(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: Path) -> None:
    stream = io.BufferedReader(io.BytesIO(log.read_bytes()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    status, out, error = call(capsys, "fit", "--trace=-", "--input_column=p", "--output_column=g", "--output=-")
    assert status == 0
    assert "correlation" in error
    assert "correlation" not in out
    monkeypatch.setattr(sys, "stdin", io.StringIO(out))
    assert call(capsys, "fit", "--workload=-")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "source: not given; give one of --trace"),
        (["--workload=paper-x"], "workload: paper-x: no such file, and no preset of workloads; presets: arxiv"),
        (["--workload=paper-s", "--trace=x"], "trace, workload: do not go together"),
        (["--input_histogram=x"], "input_histogram: do not go together"),
        (["--trace=nowhere.csv"], "trace: nowhere.csv: no such file"),
        (["--trace=nowhere.csv", "--correlation=0.5"], "correlation: 0.5 given, but --trace has its own"),
        (MOMENTS[1:], "input_mean: not given; moments need"),
        ([*MOMENTS[:-1]], "moments: not given; say whether"),
        ([*MOMENTS, "--input_moments=truncated"], "input.std: 252 after truncation to 0..512 is impossible"),
        ([*MOMENTS, "--output_std=-1"], "output.std: -1.0 is no deviation"),
        ([*MOMENTS, "--output_std=nan"], "output.std: nan is no deviation"),
        ([*MOMENTS, "--output_max=0"], "output.most: 0 is out of range"),
        ([*MOMENTS, "--correlation=2"], "correlation: 2.0 is out of range"),
        ([*MOMENTS, "--output=/nowhere/made.json"], "output: /nowhere/made.json cannot be written"),
        (["--workload=paper-s", "more"], "arguments: 'more' is no flag"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refusal(capsys, "fit", *arguments)


def test_a_bad_row_leaves_the_old_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], log: Path) -> None:
    output = tmp_path / "made.json"
    output.write_text("old")
    with log.open("a") as stream:
        stream.write("5,-3,1\n")
    assert "log.csv: line 1002: g: '-3' is no whole number" in refusal(
        capsys, "fit", *columns(log), f"--output={output}"
    )
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "made.json"]
