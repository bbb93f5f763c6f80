"""Timelines: bounded, summed up, and readable by ui.perfetto.dev."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solver.plan.timeline import Timeline, TimelineEntry


def filled() -> Timeline:
    """Two phases: encode 0.0-0.2, decode dispatched with it and ready at 1.0; decode 1.5-2.0."""
    timeline = Timeline()
    timeline.add(TimelineEntry(0, "encode", 0, 0.0, 0.2, rows=2, tokens=30, rows_bucket=4, tokens_bucket=16))
    timeline.add(TimelineEntry(0, "decode", 0, 0.0, 1.0, rows=2, tokens=16, iterations=8, rows_bucket=4))
    timeline.add(TimelineEntry(1, "decode", 0, 1.5, 2.0, rows=1, tokens=5, iterations=5, rows_bucket=4))
    return timeline


def test_sums_count_each_moment_once() -> None:
    timeline = filled()
    summary = timeline.summary()
    assert summary["encode"].mean_s == pytest.approx(0.2)
    assert summary["decode"].count == 2
    assert summary["decode"].mean_s == pytest.approx((0.8 + 0.5) / 2)  # the first one began when encode was done
    assert summary["decode"].tokens == 21
    assert summary["decode"].mean_rows == 1.5
    assert timeline.busy_share() == pytest.approx(1.5 / 2.0)


def test_an_empty_timeline_has_nothing_to_say() -> None:
    timeline = Timeline()
    assert timeline.summary() == {}
    assert timeline.busy_share() == 0.0
    assert json.loads(timeline.to_chrome_trace())["traceEvents"] == []


def test_old_entries_fall_out() -> None:
    timeline = Timeline(capacity=3)
    for phase in range(10):
        timeline.add(TimelineEntry(phase, "decode", 0, phase, phase + 1.0, rows=1, tokens=1))
    assert [entry.phase for entry in timeline] == [7, 8, 9]


def test_the_trace_names_its_tracks_and_counts_microseconds(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    filled().write_chrome_trace(path)
    assert [child.name for child in tmp_path.iterdir()] == ["trace.json"]
    events = json.loads(path.read_text())["traceEvents"]
    names = {(e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"}
    assert {("process_name", "stage 0"), ("thread_name", "encode"), ("thread_name", "decode")} <= names
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["cat"], round(e["ts"]), round(e["dur"])) for e in spans] == [
        ("encode", 0, 200_000),
        ("decode", 200_000, 800_000),
        ("decode", 1_500_000, 500_000),
    ]
    assert spans[0]["args"]["tokens"] == 30
    assert len({(e["pid"], e["tid"]) for e in spans}) == 2
