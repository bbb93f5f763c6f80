"""Reports: well-formed, self-contained, the same bytes twice, and drawn from the numbers they are given."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from solver.plan.compare import ABSENT, differences
from solver.plan.prediction import StageMemory, StagePrediction
from solver.plan.timeline import Timeline, TimelineEntry
from solver.report import words
from solver.report.front_chart import FrontPoint, pareto_chart
from solver.report.page import Chart, to_html, to_svg, write_report
from solver.report.pair_chart import Pair, pair_chart
from solver.report.plan_charts import memory_chart, stage_chart
from solver.report.timeline_chart import timeline_chart
from tests.solver.test_plan import plan_of
from tests.solver.test_plan_facts import full_plan

GIB = 2**30


def timeline(stages: int = 2) -> Timeline:
    made = Timeline()
    for phase in range(6):
        for stage in range(stages):
            kind = "decode" if phase % 2 else "encode"
            begin = phase + 0.1 * stage
            made.add(TimelineEntry(phase, kind, stage, begin, begin + 0.8, 7, 50))  # type: ignore[arg-type]
    return made


def charts() -> list[Chart]:
    memory = tuple(StageMemory(i, "a100", 20 * GIB, (30 - i) * GIB, GIB, GIB, 80 * GIB, 72 * GIB) for i in range(40))
    front = [
        FrontPoint(0.5, None),
        FrontPoint(1.0, 3.0, 3.3, "static"),
        FrontPoint(2.0, 5.0, 5.0, "rra"),
        FrontPoint(None, 6.0),
    ]
    return [
        memory_chart(memory),
        memory_chart(memory[:1]),
        stage_chart([StagePrediction(0.5, 0.01, 0.9), StagePrediction(0.0, 0.02, 0.7)]),
        stage_chart([StagePrediction(0.0, 0.0, 0.0)]),
        pareto_chart({"best": front, "static": front[:3]}, "Front", "seconds"),
        pareto_chart({"best": [FrontPoint(1.0, None)]}, "Nothing", "seconds"),
        timeline_chart(timeline()),
        timeline_chart(timeline(1)),
        timeline_chart(Timeline()),
        pair_chart([Pair("throughput", 2.0, 2.3, "req/s"), Pair("nothing", 0.0, 1.0, "s")]),
    ]


def test_a_page_is_well_formed_and_whole() -> None:
    made = charts()[1:]
    page = to_html("A <title> & more", made, ["policy: <b>", "plain"])
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page), "nothing may be fetched"
    assert "A &lt;title&gt; &amp; more" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert page.count("<figure") == len(made)


def test_an_svg_holds_every_chart() -> None:
    text = to_svg(charts()[1:4])
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert text.count('id="axes_') == 3


def test_equal_reports_are_equal_bytes() -> None:
    assert to_html("t", charts()[1:2], ["a: b"]) == to_html("t", charts()[1:2], ["a: b"])


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "r.svg"
    write_report(str(target), "t", charts()[1:2])
    before = target.read_bytes()

    def broken(axes: object) -> None:
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        write_report(str(target), "t", [Chart("c", broken)])
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["r.svg"]
    with pytest.raises(ValueError, match=r"r.png has no known ending; give one of .html, .svg"):
        write_report(str(tmp_path / "r.png"), "t", charts()[:1])


def _drawn(chart: Chart) -> object:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    chart.draw(axes)
    return axes


def test_bars_are_as_long_as_the_bytes() -> None:
    axes = _drawn(memory_chart([StageMemory(0, "a", 3 * GIB, 5 * GIB, GIB, GIB // 2, 20 * GIB, 18 * GIB)]))
    assert [round(bar.get_width(), 6) for bar in axes.patches] == [3.0, 5.0, 1.0, 0.5]  # type: ignore[attr-defined]
    assert any("8.5 GiB free" in text.get_text() for text in axes.texts)  # type: ignore[attr-defined]


def test_the_front_is_drawn_where_the_numbers_are() -> None:
    points = [FrontPoint(1.0, 3.0, 3.0, "static"), FrontPoint(2.0, 5.0, 5.5, "rra"), FrontPoint(4.0, None)]
    axes = _drawn(pareto_chart({"best": points}, "t", "seconds"))
    marks = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1
    }  # type: ignore[attr-defined]
    assert {(1.0, 3.0), (2.0, 5.0), (2.0, 5.5)} <= marks


def test_a_timeline_starts_at_nought_and_shows_phases_from_the_middle() -> None:
    axes = _drawn(timeline_chart(timeline(), phases=2))
    spans = [path.get_extents() for bars in axes.collections for path in bars.get_paths()]  # type: ignore[attr-defined]
    assert min(span.x0 for span in spans) == pytest.approx(0.0)
    assert max(span.x1 for span in spans) == pytest.approx(1.9)
    assert len(spans) == 4


def test_plotting_comes_in_only_when_something_is_drawn() -> None:
    modules = ", ".join(f"solver.report.{name}" for name in ("front_chart", "pair_chart", "plan_charts", "words"))
    program = f"import {modules}, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_words_say_what_binds() -> None:
    plan = full_plan()
    text = "\n".join(words.summary(plan))
    assert "encode 6 prompts, decode 8 iterations" in text
    assert "1 stage, 2 copies: layers 0-1 on devices 0-1" in text
    assert "none of them holds the plan back" in text
    assert "node-limited" not in text
    assert "no plan is more than 0.667% better" in text
    assert "from -30% to +15%" in text
    assert "none; this plan was not searched for" in "\n".join(words.summary(plan_of()))


@pytest.mark.parametrize(
    ("value", "text"), [(12.0, "12 s"), (0.25, "250 ms"), (2.5e-5, "25 us"), (0.0, "0 us"), (float("inf"), "unbounded")]
)
def test_seconds_read_well(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_differences_name_every_field_that_differs() -> None:
    first, second = plan_of(batch=6), plan_of(batch=7)
    found = {d.path: (d.first, d.second) for d in differences(first, second)}
    assert found["schedule.encode_batch"] == (6, 7)
    assert "schedule.policy" not in found
    assert differences(first, first) == []
    planned = {d.path: (d.first, d.second) for d in differences(first, full_plan())}
    assert planned["bounds.latency_s"] == (ABSENT, 2.5)
    assert planned["memory[0].cache_bytes"] == (ABSENT, 20)
    change = next(d for d in differences(first, second) if d.path == "schedule.encode_batch").change
    assert change == pytest.approx(1 / 6)


def test_many_stages_are_cut_to_the_fullest() -> None:
    full = charts()[0]
    assert full.title == "Memory of each device, by stage (the 32 fullest of 40)"
    assert len(_drawn(full).patches) == 4 * 32  # type: ignore[attr-defined]
