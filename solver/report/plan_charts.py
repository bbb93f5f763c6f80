"""What a plan alone can show: memory of each device, and times of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from solver.plan.plan import Plan
from solver.plan.prediction import StageMemory, StagePrediction
from solver.report.drawing import MOST_BARS, height_of, legend_below, of_total, plain_ticks
from solver.report.page import BLUE, GREEN, ORANGE, PURPLE, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB = 2**30
_PARTS = (
    ("weights_bytes", "weights", BLUE, ""),
    ("cache_bytes", "keys and values", ORANGE, "//"),
    ("payload_bytes", "prompts under way", GREEN, ".."),
    ("temporary_bytes", "temporaries", PURPLE, "xx"),
)


def plan_charts(plan: Plan) -> list[Chart]:
    """What a plan alone can show: memory per device, and times per stage."""
    charts = []
    if plan.memory:
        charts.append(memory_chart(plan.memory))
    if plan.prediction is not None and plan.prediction.stages:
        charts.append(stage_chart(plan.prediction.stages))
    return charts


def memory_chart(memory: Sequence[StageMemory]) -> Chart:
    """One bar per stage; beyond 32 stages, the fullest."""
    shown = sorted(sorted(memory, key=lambda m: m.head_room_bytes)[:MOST_BARS], key=lambda m: m.stage)
    title = "Memory of each device, by stage" + of_total(len(shown), len(memory), "fullest")

    def draw(axes: Axes) -> None:
        rows = range(len(shown))
        left = [0.0] * len(shown)
        for field, label, colour, hatch in _PARTS:
            sizes = [getattr(entry, field) / _GIB for entry in shown]
            axes.barh(rows, sizes, left=left, color=colour, hatch=hatch, edgecolor="white", label=label, height=0.7)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        for limit, style, label in (("usable_bytes", "-", "may be filled"), ("capacity_bytes", ":", "device")):
            for row, entry in zip(rows, shown, strict=True):
                x = getattr(entry, limit) / _GIB
                axes.plot(
                    [x, x], [row - 0.42, row + 0.42], style, color="black", lw=1.6, label=label if not row else None
                )
        most = max(entry.capacity_bytes for entry in shown) / _GIB
        for row, entry, end in zip(rows, shown, left, strict=True):
            room = f"{entry.head_room_bytes / _GIB:.3g} GiB free"
            inside = end > 0.7 * most
            axes.annotate(
                room, (end, row), xytext=(-5 if inside else 5, 0), textcoords="offset points", va="center", fontsize=9,
                ha="right" if inside else "left", bbox={"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85},
            )  # fmt: skip
        axes.set_yticks(list(rows), [f"stage {entry.stage}\n{entry.device_kind}" for entry in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, most * 1.03)
        axes.set_xlabel("GiB per device")
        legend_below(axes, 6)

    return Chart(title, draw, height_of(len(shown), lines=2))


def stage_chart(stages: Sequence[StagePrediction]) -> Chart:
    """How long each stage works in a period's phases, and for which share of the time; beyond 32, the busiest."""
    order = sorted(range(len(stages)), key=lambda i: -stages[i].busy_share)[:MOST_BARS]
    shown = sorted(order)
    title = "Predicted time of each stage" + of_total(len(shown), len(stages), "busiest")

    def draw(axes: Axes) -> None:
        rows = range(len(shown))
        width = 0.38
        for offset, name, label, colour, hatch in (
            (-width / 2, "encode_s", "one encode phase", ORANGE, "//"),
            (width / 2, "decode_s", "one decode iteration", BLUE, ""),
        ):
            values = [getattr(stages[i], name) * 1e3 for i in shown]
            axes.barh(
                [r + offset for r in rows], values, width, color=colour, hatch=hatch, edgecolor="white", label=label
            )
        for row, i in zip(rows, shown, strict=True):
            x = max(stages[i].encode_s, stages[i].decode_s) * 1e3
            axes.annotate(f"busy {stages[i].busy_share:.0%}", (x, row), xytext=(5, 0), textcoords="offset points",
                          va="center", fontsize=9)  # fmt: skip
        values = [v * 1e3 for i in shown for v in (stages[i].encode_s, stages[i].decode_s) if v > 0]
        if values and max(values) / min(values) > 30:
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 2, max(values) * 3)
            plain_ticks(axes)
        elif values:
            axes.set_xlim(0, max(values) * 1.2)
        axes.set_yticks(list(rows), [f"stage {i}" for i in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds")
        legend_below(axes, 2)

    return Chart(title, draw, height_of(len(shown), lines=1.6))
