"""What each stage did when, and the gaps between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solver.plan.timeline import Timeline, TimelineEntry
from solver.report.drawing import MOST_BARS, height_of, legend_below
from solver.report.page import BLUE, GREEN, GREY, ORANGE, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = (("encode", ORANGE, "//"), ("decode", BLUE, ""), ("move", GREEN, ".."), ("release", GREY, "xx"))


def timeline_chart(timeline: Timeline, title: str = "Timeline", phases: int = 10) -> Chart:
    """Some phases from the middle of what was kept, one row per stage: what each worked on, and the gaps between."""
    entries = list(timeline)
    known = sorted({entry.phase for entry in entries})
    wanted = set(known[max(0, (len(known) - phases) // 2) :][:phases])
    shown = [entry for entry in entries if entry.phase in wanted]
    stages = sorted({entry.stage for entry in shown})[:MOST_BARS]

    def draw(axes: Axes) -> None:
        if not shown:
            axes.text(0.5, 0.5, "nothing was recorded", ha="center", transform=axes.transAxes)
            return
        begins = _begins(shown)
        origin = min(begins)
        for kind, colour, hatch in _KINDS:
            first = True
            for row, stage in enumerate(stages):
                spans = [(b - origin, e.ready_s - b) for e, b in zip(shown, begins, strict=True)
                         if e.kind == kind and e.stage == stage]  # fmt: skip
                if spans:
                    axes.broken_barh(
                        spans, (row - 0.38, 0.76), facecolors=colour, hatch=hatch, edgecolor="white", lw=0.4,
                        label=kind if first else None,
                    )  # fmt: skip
                    first = False
        if len(stages) == 1:
            _label_rows(axes, shown, begins, origin)
        axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in stages])
        axes.set_ylim(len(stages) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds")
        legend_below(axes, 4)

    return Chart(title, draw, height_of(max(1, len(stages)), lines=2))


def _label_rows(axes: Axes, shown: list[TimelineEntry], begins: list[float], origin: float) -> None:
    """How many rows, where the bar is wide enough for the number."""
    total = max(entry.ready_s for entry in shown) - origin
    for entry, begin in zip(shown, begins, strict=True):
        if entry.ready_s - begin > 0.09 * total:
            middle = (begin + entry.ready_s) / 2 - origin
            box = {"fc": "white", "ec": "none", "pad": 1.2, "alpha": 0.85}
            axes.text(middle, 0, f"{entry.rows} rows", ha="center", va="center", fontsize=8, bbox=box)


def _begins(entries: list[TimelineEntry]) -> list[float]:
    """When the stage began to work on each: dispatched, and done with the entry before."""
    free: dict[int, float] = {}
    begins = []
    for entry in entries:
        begins.append(min(max(entry.dispatched_s, free.get(entry.stage, entry.dispatched_s)), entry.ready_s))
        free[entry.stage] = entry.ready_s
    return begins
