"""What is read off a Timeline, reading by reading, is what stands in it: counted once, predicted where it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from serving.telemetry import phases
from serving.telemetry.phases import PARTS, PhaseLog
from solver.plan.timeline import News, Timeline, TimelineEntry


class Half:
    """Predicts that each entry takes half a second, and a phase the sum of its entries; none of phase 9."""

    def entry_s(self, entry: TimelineEntry) -> float | None:
        return 0.5

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        return None if entries[0].phase == 9 else 0.5 * len(entries)


def add_phase(timeline: Timeline, phase: int, begin_s: float, rows: int = 4) -> None:
    """Two seconds: an encode part of 0.5 s, a decode part of 1 s, half a second on the host."""
    timeline.add(TimelineEntry(phase, "encode", 0, begin_s, begin_s + 0.5, rows=2, tokens=20))
    timeline.add(TimelineEntry(phase, "decode", 0, begin_s, begin_s + 1.5, rows=rows, tokens=4 * rows, iterations=4))
    timeline.close(phase, 2.0)


def test_readings_add_up_to_the_timeline() -> None:
    timeline = Timeline(predictor=Half())
    log = PhaseLog(timeline, 0.0)
    for phase in range(10):
        add_phase(timeline, phase, 2.0 * phase)
        if phase % 3 == 0:
            log.read(2.0 * phase + 1.8)
    for _ in range(2):
        log.read(20.0)
    assert {part: log.measured_s[part].count for part in PARTS} == dict.fromkeys(PARTS, 10)
    sums = {part: log.measured_s[part].sum for part in PARTS}
    assert sums == pytest.approx({"encode": 5.0, "decode": 10.0, "whole": 20.0})
    # Of phase 9 nothing is predicted.
    assert {part: log.predicted_s[part].sum for part in PARTS} == {"encode": 4.5, "decode": 4.5, "whole": 9.0}
    assert log.error_ratios() == pytest.approx({"encode": 0.0, "decode": -0.5, "whole": -0.5})
    assert (log.rows["encode"].sum, log.rows["decode"].sum) == (20, 40)
    assert log.busy_ratios(20.0) == pytest.approx({0: 15 / 20})


def test_what_ended_just_now_is_left_for_the_next_reading() -> None:
    timeline = Timeline()
    log = PhaseLog(timeline, 0.0)
    add_phase(timeline, 0, 0.0)
    log.read(1.51)
    assert (log.measured_s["encode"].count, log.measured_s["decode"].count, log.measured_s["whole"].count) == (1, 0, 0)
    log.read(1.6)
    assert (log.measured_s["encode"].count, log.measured_s["decode"].count, log.measured_s["whole"].count) == (1, 1, 1)
    assert log.error_ratios() == {}


def test_only_the_last_minute_counts_for_ratios() -> None:
    timeline = Timeline(predictor=Half())
    log = PhaseLog(timeline, 0.0)
    add_phase(timeline, 0, 0.0)
    log.read(5.0)
    assert log.busy_ratios(5.0) == {0: pytest.approx(0.3)}
    log.read(100.0)
    assert log.error_ratios() == {}
    assert log.busy_ratios(100.0) == {0: 0.0}
    assert log.measured_s["whole"].count == 1


def test_stages_and_micro_batches_make_one_part() -> None:
    timeline = Timeline()
    log = PhaseLog(timeline, 0.0)
    for iteration in range(3):
        for micro_batch in range(2):
            for stage in range(2):
                at_s = 2 * iteration + micro_batch + stage
                part = TimelineEntry(7, "decode", stage, at_s, at_s + 1, rows=3 + micro_batch, tokens=3, iterations=1)
                timeline.add(dataclasses.replace(part, micro_batch=micro_batch, iteration=iteration))
    timeline.close(7, 7.5)
    log.read(8.0)
    assert log.measured_s["decode"].sum == 7.0
    assert log.rows["decode"].sum == 7
    assert log.busy_ratios(8.0) == {0: 6 / 8, 1: 6 / 8}


def test_a_timeline_tells_what_it_has_gained_though_the_old_fell_out() -> None:
    timeline = Timeline(capacity=4)
    news = timeline.after(News())
    assert (news.entries, news.turns) == ((), ())
    add_phase(timeline, 0, 0.0)
    news = timeline.after(news)
    assert [entry.kind for entry in news.entries] == ["encode", "decode"]
    assert timeline.after(news).entries == ()
    for phase in (1, 2, 3):
        add_phase(timeline, phase, 2.0 * phase)
    news = timeline.after(news)
    assert [entry.phase for entry in news.entries] == [2, 2, 3, 3]
    assert [phase for phase, _ in news.turns] == [1, 2, 3]
    assert timeline.after(news).entries == timeline.after(news).turns == ()


def test_a_long_time_is_made_up_for_over_several_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_MOST_PARTS", 7)
    timeline = Timeline(predictor=Half())
    log = PhaseLog(timeline, 0.0)
    for phase in range(20):
        add_phase(timeline, phase, 2.0 * phase)
    counts = []
    while sum(counts[-1:]) < 40:
        log.read(100.0)
        counts.append(log.measured_s["encode"].count + log.measured_s["decode"].count)
    assert counts == [7, 14, 21, 28, 35, 40]
    assert {part: log.measured_s[part].count for part in PARTS} == dict.fromkeys(PARTS, 20)
    assert log.measured_s["whole"].sum == 40.0
