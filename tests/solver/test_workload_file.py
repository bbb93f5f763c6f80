"""Workload files: the three forms there and back, the presets against their origin, one line for every fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.facts import presets
from solver.facts.histogram import margins
from solver.facts.raw_log import read_trace
from solver.facts.truncated_normal import Moments
from solver.facts.workload import Workload
from solver.facts.workload_file import (
    MomentsForm,
    PairsForm,
    TraceForm,
    WorkloadFile,
    file_of,
    load_workload,
    parse,
    to_text,
    workload_of,
)
from tests.solver.changed import with_field

ROOT = Path(__file__).parents[2]
PRESETS = ("paper-s", "paper-t", "paper-g", "paper-c1", "paper-c2", "azure-code", "sharegpt", "arxiv", "deepseek-r1")

MOMENTS = WorkloadFile(
    1, "m", "hand", "none",
    moments=MomentsForm(Moments(20, 30, 40, "parent"), Moments(8, 3, 20, "truncated"), 0.3),
)  # fmt: skip
PAIRS = WorkloadFile(1, "p", "hand", "none", pairs=PairsForm((5, 3, 5), (2, 9, 2), (1.0, 2.5, 1.5)))
TRACE = WorkloadFile(1, "t", "hand", "none", trace=TraceForm((5, 3, 5), (2, 9, 2), (0.0, 0.25, 0.25)))


@pytest.mark.parametrize("given", [MOMENTS, PAIRS, TRACE], ids=lambda given: given.name)
def test_there_and_back(given: WorkloadFile) -> None:
    assert parse(to_text(given), "w.json") == given
    first, second = workload_of(given), workload_of(file_of(workload_of(given), "none"))
    assert (first.input_tokens == second.input_tokens).all()
    assert (first.output_tokens == second.output_tokens).all()
    assert first.probability == pytest.approx(second.probability, abs=1e-15)


def test_what_the_forms_mean() -> None:
    pairs = workload_of(PAIRS)
    assert list(zip(pairs.input_tokens, pairs.output_tokens, pairs.probability, strict=True)) == [
        (5, 2, 0.5),
        (3, 9, 0.5),
    ]
    once = workload_of(WorkloadFile(1, "p", "", "", pairs=PairsForm((5, 3, 5), (2, 9, 2))))
    assert once.probability == pytest.approx([2 / 3, 1 / 3])
    trace = workload_of(TRACE).trace
    assert trace is not None
    assert trace.arrival_s is not None
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0, 0.25, 0.25], [5, 3, 5])
    moments = workload_of(MOMENTS)
    assert moments.mean_output == pytest.approx(8.5, abs=0.01)
    assert moments.correlation == pytest.approx(0.3, abs=0.01)
    assert len(moments.probability) == 40 * 20


# presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    workload = load_workload(name)
    path = presets.find("workloads", name)
    assert workload.name == name
    assert path.stat().st_size < 400_000
    record = json.loads(path.read_text())
    assert record["source"]
    assert record["licence"]
    readme = (path.parent / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| {name} |")]
    assert _readme_row(workload) == row.rsplit("|", 2)[0]


def _readme_row(workload: Workload) -> str:
    figures = [
        f"{side.mean:.1f} | {side.std:.1f} | {' / '.join(str(side.percentile(p)) for p in (50, 90, 99, 100))}"
        for side in margins(workload)
    ]
    return f"| {workload.name} | {' | '.join(figures)} "


def test_preset_names_are_the_contracts() -> None:
    assert {path.stem for path in (presets.CONFIGS / "workloads").glob("*.json")} == set(PRESETS)


@pytest.mark.parametrize(("name", "percentile"), [("s", 63), ("t", 292), ("g", 417), ("c1", 137), ("c2", 579)])
def test_a1_paper_presets(name: str, percentile: int) -> None:
    assert load_workload(f"paper-{name}").output_percentile(99) == percentile


@pytest.mark.parametrize(
    ("name", "file", "columns"),
    [
        ("azure-code", "azure/AzureLLMInferenceTrace_code.csv", ("ContextTokens", "GeneratedTokens", "TIMESTAMP")),
        (
            "sharegpt",
            "sharegpt/sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz",
            ("num_prefill_tokens", "num_decode_tokens", None),
        ),
        (
            "arxiv",
            "vidur/data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz",
            ("num_prefill_tokens", "num_decode_tokens", None),
        ),
    ],
)
def test_traces_are_kept_whole(shared_data: Path, name: str, file: str, columns: tuple[str, str, str | None]) -> None:
    trace, _ = read_trace(str(shared_data / file), *columns)
    workload = load_workload(name)
    requests = len(trace.input_tokens)
    counts = workload.probability * requests
    assert counts == pytest.approx(np.rint(counts), abs=1e-6)
    assert workload.mean_output == pytest.approx(trace.output_tokens.mean())
    assert workload.mean_input == pytest.approx(trace.input_tokens.mean())
    pairs = {(int(i), int(s)) for i, s in zip(trace.input_tokens, trace.output_tokens, strict=True)}
    assert pairs == set(zip(workload.input_tokens.tolist(), workload.output_tokens.tolist(), strict=True))
    if trace.arrival_s is not None:
        assert workload.trace is not None
        assert workload.trace.arrival_s is not None
        assert workload.trace.arrival_s == pytest.approx(trace.arrival_s, abs=6e-4)


def test_presets_are_what_the_script_makes(shared_data: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "tools" / "make_workloads.py"
    arguments = [sys.executable, str(script), f"--data={shared_data}", f"--output={tmp_path}"]
    subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, timeout=120)
    for name in PRESETS:
        made, kept = (folder / f"{name}.json" for folder in (tmp_path, presets.CONFIGS / "workloads"))
        assert made.read_text() == kept.read_text(), name


# faults ------------------------------------------------------------------------------------------------------------


def record(given: WorkloadFile) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_text(given))
    return found


def changed(given: WorkloadFile, path: str, value: object) -> str:
    """The file's text with one field changed; the value `...` removes it."""
    return with_field(to_text(given), path, value)


FAULTS = [
    ("", "w.json: is empty; make a workload file"),
    ("in,out\n3,4\n", "w.json: is no workload file; make one from it with exegpt fit"),
    (to_text(TRACE)[:-20], "w.json: no valid JSON"),
    (changed(TRACE, "schema_version", 2), "w.json.schema_version: 2 is not 1"),
    (changed(TRACE, "colour", 2), "w.json.colour: unknown field"),
    (changed(TRACE, "licence", ...), "w.json.licence: missing"),
    (changed(TRACE, "trace", ...), "w.json: no form given; give one of moments, pairs, trace"),
    (changed(TRACE, "pairs", record(PAIRS)["pairs"]), "w.json: pairs, trace given; give one of"),
    (changed(TRACE, "trace.input_tokens", []), r"w.json.trace.input_tokens: is empty"),
    (changed(TRACE, "trace.input_tokens", [5, 3]), r"w.json.trace.output_tokens: 3 entries where input_tokens has 2"),
    (changed(TRACE, "trace.input_tokens", [5, 0, 1]), r"w.json.trace.input_tokens\[1\]: 0 is out of range"),
    (changed(TRACE, "trace.output_tokens", [5, 1, -1]), r"w.json.trace.output_tokens\[2\]: -1 is out of range"),
    (changed(TRACE, "trace.output_tokens", [5, 1, 1.5]), r"w.json.trace.output_tokens\[2\]: 1.5 is no int"),
    (changed(TRACE, "trace.output_tokens", [5, True, 1]), r"w.json.trace.output_tokens\[1\]: True is no int"),
    (changed(TRACE, "trace.arrival_s", [0, 2, 1]), r"w.json.trace.arrival_s\[2\]: 1.0 lies before 2.0"),
    (changed(TRACE, "trace.arrival_s", [-1, 0, 1]), r"w.json.trace.arrival_s\[0\]: -1.0 lies before 0.0"),
    (changed(TRACE, "trace.arrival_s", [0, float("nan"), 1]), "w.json: no valid JSON .NaN is no finite number"),
    (changed(TRACE, "trace.arrival_s", [0, 1e400, 1]), "w.json: no valid JSON .Infinity is no finite number"),
    (to_text(TRACE).replace("0.25, 0.25", "0.25, 1e999"), r"w.json.trace.arrival_s\[2\]: inf is no finite number"),
    (changed(PAIRS, "pairs.count", [1, 0, 1]), r"w.json.pairs.count\[1\]: 0.0 is not positive"),
    (changed(PAIRS, "pairs.count", [1, 1]), "w.json.pairs.count: 2 entries where input_tokens has 3"),
    (changed(MOMENTS, "moments.output.std", -2), "w.json.moments.output: std: -2.0 is no deviation"),
    (changed(MOMENTS, "moments.output.moments", "either"), "w.json.moments.output.moments: 'either' is none of"),
    (changed(MOMENTS, "moments.output.most", 1.5), "w.json.moments.output.most: 1.5 is no int"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as failure:
        load_workload(str(path))
    assert "\n" not in str(failure.value)
    assert str(path) in str(failure.value)


def test_impossible_moments_and_correlations_are_refused_when_the_distribution_is_made() -> None:
    with pytest.raises(ValueError, match=r"output.std: 13 after truncation to 0..20 is impossible"):
        workload_of(parse(changed(MOMENTS, "moments.output.std", 13), "w.json"))
    with pytest.raises(ValueError, match=r"correlation: 1.5 is out of range"):
        workload_of(parse(changed(MOMENTS, "moments.correlation", 1.5), "w.json"))


def test_unknown_names_list_the_presets() -> None:
    with pytest.raises(
        ValueError, match=r"paper-x: no such file, and no preset of workloads; presets: arxiv, azure-code"
    ):
        load_workload("paper-x")
