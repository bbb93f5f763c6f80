"""Logs of others: both formats, packed or not, what is sorted, and one line for everything that is wrong."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from solver.facts.raw_log import read_histogram, read_pairs, read_trace
from solver.facts.trace_stats import arrivals_of, drift_of
from solver.facts.workload import Trace

ROWS = [(5, 3, 0.25), (17, 1, 0.5), (5, 3, 0.5), (400, 90, 7.125)]
CSV = "id,in,out,at\n" + "".join(f"x,{i},{o},{t}\n" for i, o, t in ROWS)
LINES = "".join(json.dumps({"in": i, "id": "x", "out": o, "at": t}) + "\n" for i, o, t in ROWS)


def check(trace: Trace) -> None:
    assert trace.input_tokens.tolist() == [i for i, _, _ in ROWS]
    assert trace.output_tokens.tolist() == [o for _, o, _ in ROWS]
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [t - 0.25 for _, _, t in ROWS]


@pytest.mark.parametrize("text", [CSV, LINES, "\ufeff" + CSV, CSV.replace("\n", "\r\n"), LINES.replace("}\n", "}\n\n")])
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path: Path, text: str, packed: bool) -> None:
    path = tmp_path / "log"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    trace, late = read_trace(str(path), "in", "out", "at")
    check(trace)
    assert late == 0


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(CSV.encode()))))
    check(read_trace("-", "in", "out", "at")[0])


def test_quoted_fields_with_commas_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('prompt,in,out\n"a, b",3,4\n"two\nlines",5,6\n')
    assert read_trace(str(path), "in", "out", None)[0].input_tokens.tolist() == [3, 5]
    path.write_text('prompt,in,out\n"two\nlines",5,6\nx,0,6\n')
    with pytest.raises(ValueError, match=r"log.csv: line 4: in: '0' is no whole number"):
        read_trace(str(path), "in", "out", None)


def test_whole_numbers_written_with_a_point_are_lengths(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("in,out\n3.0,4\n 5 ,6.0\n")
    assert read_trace(str(path), "in", "out", None)[0].input_tokens.tolist() == [3, 5]


@pytest.mark.parametrize(
    "times",
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:04.0319600"),
        ("2024-03-31T01:00:00+02:00", "2024-03-30T23:00:00.052Z"),
    ],
)
def test_iso_times(tmp_path: Path, times: tuple[str, str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"in,out,at\n1,2,{times[0]}\n3,4,{times[1]}\n")
    arrival = read_trace(str(path), "in", "out", "at")[0].arrival_s
    assert arrival is not None
    assert arrival == pytest.approx([0, 0.052], abs=1e-6)


def test_out_of_order_requests_are_sorted_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("in,out,at\n1,1,5\n2,2,3\n3,3,3\n4,4,9\n")
    trace, late = read_trace(str(path), "in", "out", "at")
    assert trace.input_tokens.tolist() == [2, 3, 1, 4]
    assert trace.arrival_s is not None
    assert trace.arrival_s.tolist() == [0, 0, 2, 6]
    assert late == 1


BAD = {
    "in,out,at\n": "holds no row",
    "": "is empty",
    " \n\n": "is empty",
    "in,out\n1,2\n": "at: no such column; there are in, out",
    "in,out,at\n1,2,3\n0,2,3\n": r"line 3: in: '0' is no whole number of tokens from 1",
    "in,out,at\n1,-2,3\n": r"line 2: out: '-2' is no whole number",
    "in,out,at\n1,2.5,3\n": r"line 2: out: '2.5' is no whole number",
    "in,out,at\n1,nan,3\n": r"line 2: out: 'nan' is no whole number",
    "in,out,at\n1,,3\n": r"line 2: out: '' is no whole number",
    "in,out,at\n1,1e12,3\n": r"line 2: out: '1e12' is no whole number",
    "in,out,at\n1,2,inf\n": "line 2: at: 'inf' is no finite time",
    "in,out,at\n1,2,soon\n": "line 2: at: 'soon' is no time; give seconds or ISO 8601",
    "in,out,at\n1,2,3\n1,2,2023-01-01\n": "line 3: at: '2023-01-01' is written otherwise",
    "in,out,at\n1,2,2023-01-01\n1,2,3.5\n": "line 3: at: '3.5' is written otherwise",
    "in,out,at\n1,2,3\n4,5\n": "line 3: 2 columns where the header has 3; is the file cut short",
    '{"in": 1, "out": 2, "at": 3}\n{"in": 1, "ou': r"line 2: is no JSON \(.*none cut short",
    '{"in": 1, "at": 3}\n': "line 1: out: missing; there are in, at",
    '{"in": true, "out": 2, "at": 3}\n': "line 1: in: True is no whole number",
    '{"in": NaN, "out": 2, "at": 3}\n': "line 1: is no JSON .NaN is no finite number",
    '{"in": null, "out": 2, "at": 3}\n': "line 1: in: None is no whole number",
    '{"in": [1], "out": 2, "at": 3}\n': r"line 1: in: \[1\] is no whole number",
    '[{"in": 1, "out": 2, "at": 3}]\n': "line 1: is no JSON object; give one object a line",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_what_is_wrong_is_one_line_with_file_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"log.txt: {message}") as failure:
        read_trace(str(path), "in", "out", "at")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(CSV.encode() * 50, mtime=0)[:-40], "is cut short or damaged"),
        (gzip.compress(CSV.encode(), mtime=0)[:12] + b"garbage", "is cut short or damaged"),
        (CSV.encode().replace(b"x", b"\xff"), "is no UTF-8 text"),
        (b"in,out,at\n" + b"1" * 3_000_000, "line 2: is longer than"),
        (b"in,out,at\n1,2,\x003\n", "line 2"),
    ],
    ids=("cut", "garbage", "not-utf8", "long-line", "nul"),
)
def test_damaged_bytes(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"log.txt: {message}"):
        read_trace(str(path), "in", "out", "at")


def test_an_error_deep_in_a_long_file_names_its_line(tmp_path: Path) -> None:
    """Blocks of rows are read at once; the line must still be right."""
    path = tmp_path / "log.csv"
    path.write_text("in,out\n" + "7,8\n" * 70_000 + "7,zero\n" + "7,8\n" * 10)
    with pytest.raises(ValueError, match=r"line 70002: out: 'zero' is no whole number"):
        read_trace(str(path), "in", "out", None)


def test_histograms(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("length,count\n7,2\n3,1\n9,0\n7,1\n")
    found = read_histogram(str(path))
    assert (found.lengths.tolist(), found.share.tolist()) == ([3, 7], [0.25, 0.75])
    assert (found.mean, found.percentile(25), found.percentile(26)) == (6, 3, 7)
    path.write_text("length,count\n7,0\n")
    with pytest.raises(ValueError, match="count: sums to 0"):
        read_histogram(str(path))
    path.write_text("length,count\n7,-1\n")
    with pytest.raises(ValueError, match="line 2: count: '-1' is no count"):
        read_histogram(str(path))


def test_joint_histogram(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("in,out,count\n7,2,3\n3,1,1\n7,2,0\n9,9,0\n")
    found = read_pairs(str(path), "made", "here", "in", "out")
    assert list(zip(found.input_tokens, found.output_tokens, found.probability, strict=True)) == [
        (3, 1, 0.25),
        (7, 2, 0.75),
    ]


def test_rate_and_variation_of_a_poisson_process() -> None:
    rng = np.random.default_rng(2)
    at = np.cumsum(rng.exponential(0.2, 20_000))
    trace = Trace(at - at[0], np.ones(20_000, np.int64), rng.integers(1, 9, 20_000))
    found = arrivals_of(trace)
    assert found is not None
    assert found.rate_rps == pytest.approx(5, rel=0.03)
    assert found.gap_variation == pytest.approx(1, abs=0.03)
    assert found.lowest_rps < found.rate_rps < found.highest_rps
    still = drift_of(trace)
    assert max(still.highest - 1, 1 - still.lowest) < 4 * still.chance


def test_drift_of_a_step() -> None:
    outputs = np.repeat([100, 150], 600)
    for arrival in (None, np.arange(1200.0)):
        found = drift_of(Trace(arrival, outputs, outputs))
        assert (found.windows, found.lowest, found.highest) == (12, pytest.approx(0.8), pytest.approx(1.2))
        assert found.step == pytest.approx(0.4)
    assert arrivals_of(Trace(np.zeros(3), outputs[:3], outputs[:3])) is None


def test_plain_and_quoted_files_read_alike_across_blocks(tmp_path: Path) -> None:
    """One quote somewhere hands the rest over to the slower reader; blocks end in the middle of lines."""
    rng = np.random.default_rng(6)
    rows = rng.integers(1, 100_000, (90_000, 3))
    lines = [f"{i},{o},{t}\n" for i, o, t in rows.tolist()]
    plain, quoted = tmp_path / "plain.csv", tmp_path / "quoted.csv"
    plain.write_text("in,out,at\n" + "".join(lines))
    lines[70_000] = '"{}",{},{}\n'.format(*rows[70_000])
    quoted.write_text("in,out,at\n" + "".join(lines).rstrip())
    assert plain.stat().st_size > 2**20
    for path in (plain, quoted):
        trace, _ = read_trace(str(path), "in", "out", "at")
        order = np.argsort(rows[:, 2], kind="stable")
        assert (trace.input_tokens == rows[order, 0]).all()
        assert (trace.output_tokens == rows[order, 1]).all()
    lines[85_000] = "1,0,1\n"
    quoted.write_text("\nin,out,at\n" + "".join(lines))
    with pytest.raises(ValueError, match=r"quoted.csv: line 85003: out: '0'"):
        read_trace(str(quoted), "in", "out", "at")


def test_rows_of_changing_width_that_add_up_are_not_taken_for_plain(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("in,out,at\n1,2\n3,4,5,6\n")
    with pytest.raises(ValueError, match=r"log.csv: line 2: 2 columns where the header has 3"):
        read_trace(str(path), "in", "out", None)


@pytest.mark.full
def test_a_million_rows_in_bounded_memory(tmp_path: Path) -> None:
    """The peak stays near the sixteen megabytes of the columns, wherever the bad row stands."""
    path = tmp_path / "log.csv"
    with path.open("w") as stream:
        stream.write("in,out\n")
        stream.writelines(f"{i % 4000 + 1},{i % 700 + 1}\n" for i in range(1_000_000))
    tracemalloc.start()
    trace, _ = read_trace(str(path), "in", "out", None)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trace.input_tokens) == 1_000_000
    assert peak_bytes < 100 * 2**20
    with path.open("a") as stream:
        stream.write("3,nan\n")
    with pytest.raises(ValueError, match="line 1000002: out: 'nan'"):
        read_trace(str(path), "in", "out", None)
