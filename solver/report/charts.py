"""The pictures of planning: memory and times per stage, the Pareto front, a timeline, predicted beside measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from solver.plan.plan import Plan
from solver.plan.prediction import StageMemory, StagePrediction
from solver.plan.timeline import Timeline, TimelineEntry
from solver.report.page import BLUE, COLOURS, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Chart, write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FrontPoint", "Pair", "memory_chart", "pair_chart", "pareto_chart", "plan_charts", "stage_chart",
           "timeline_chart", "write_report"]  # fmt: skip

_GIB = 2**30
_MOST_BARS = 32
_BAR_IN = 0.3
_MARGIN_IN = 1.6
_LEGEND_BELOW_IN = 0.42
_PARTS = (
    ("weights_bytes", "weights", BLUE, ""),
    ("cache_bytes", "keys and values", ORANGE, "//"),
    ("payload_bytes", "prompts under way", GREEN, ".."),
    ("temporary_bytes", "temporaries", PURPLE, "xx"),
)
# A marker and a colour for every policy, the same in every chart.
_POLICY_MARKS = {
    "rra": ("o", BLUE), "waa": ("s", GREEN), "waa-c": ("P", GREEN), "waa-m": ("X", GREEN), "static": ("v", ORANGE),
    "dsi": ("^", ORANGE), "iteration": ("D", PURPLE), "chunked": ("p", RED), "disaggregated": ("h", SKY),
}  # fmt: skip
_KINDS = (("encode", ORANGE, "//"), ("decode", BLUE, ""), ("move", GREEN, ".."), ("release", GREY, "xx"))


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
    shown = sorted(sorted(memory, key=lambda m: m.head_room_bytes)[:_MOST_BARS], key=lambda m: m.stage)
    title = "Memory of each device, by stage" + _of(len(shown), len(memory), "fullest")

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
        _legend_below(axes, 6)

    return Chart(title, draw, _bars_in(len(shown), lines=2))


def stage_chart(stages: Sequence[StagePrediction]) -> Chart:
    """How long each stage works in a period's phases, and for which share of the time; beyond 32, the busiest."""
    order = sorted(range(len(stages)), key=lambda i: -stages[i].busy_share)[:_MOST_BARS]
    shown = sorted(order)
    title = "Predicted time of each stage" + _of(len(shown), len(stages), "busiest")

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
            _plain_ticks(axes)
        elif values:
            axes.set_xlim(0, max(values) * 1.2)
        axes.set_yticks(list(rows), [f"stage {i}" for i in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds")
        _legend_below(axes, 2)

    return Chart(title, draw, _bars_in(len(shown), lines=1.6))


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """The best plan under one bound.

    Attributes:
      bound_s: latency bound; None: no bound.
      throughput_rps: of the plan; None where there is none.
      best_bound_rps: what no plan exceeds; None where nothing is proven.
      policy, encode_batch, decode_iterations, latency_s: of the plan.
    """

    bound_s: float | None
    throughput_rps: float | None
    best_bound_rps: float | None = None
    policy: str | None = None
    encode_batch: int | None = None
    decode_iterations: int | None = None
    latency_s: float | None = None


def pareto_chart(fronts: Mapping[str, Sequence[FrontPoint]], title: str, bound_label: str) -> Chart:
    """Throughput against the latency bound, one line for each front; markers tell which policy won where."""

    def draw(axes: Axes) -> None:
        seen: set[str] = set()
        for index, (name, points) in enumerate(fronts.items()):
            line_colour = "#444444" if index == 0 else COLOURS[index % len(COLOURS)]
            solved = [(p.bound_s, p.throughput_rps, p) for p in points if p.bound_s and p.throughput_rps]
            if solved:
                axes.step([s[0] for s in solved], [s[1] for s in solved], where="post", color=line_colour, lw=1.4,
                          label=name if len(fronts) > 1 else None, zorder=2)  # fmt: skip
            for bound_s, throughput, point in solved:
                policy = point.policy or name
                label = f"best plan: {policy}" if policy not in seen else None
                marker, colour = _POLICY_MARKS.get(policy, ("o", BLUE))
                axes.plot(bound_s, throughput, marker, color=colour, ms=8, mec="white", zorder=3, label=label)
                seen.add(policy)
            open_gap = [
                (s, p.best_bound_rps) for s, r, p in solved if p.best_bound_rps and p.best_bound_rps > r * 1.0005
            ]
            if open_gap:
                axes.plot([s for s, _ in open_gap], [b for _, b in open_gap], "v", color=GREY, ms=5,
                          label="proven: none above" if index == 0 else None)  # fmt: skip
            free = next((p.throughput_rps for p in points if p.bound_s is None), None)
            if free:
                axes.axhline(free, ls="--", lw=1, color=line_colour,
                             label=f"without a bound: {free:.4g}" if index == 0 else None)  # fmt: skip
        axes.set_xscale("log")
        _plain_ticks(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(bound_label)
        axes.set_ylabel("requests per second")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize=9)
        else:
            axes.text(0.5, 0.5, "no plan under any of these bounds", ha="center", transform=axes.transAxes)

    return Chart(title, draw, 4.6)


def timeline_chart(timeline: Timeline, title: str = "Timeline", phases: int = 10) -> Chart:
    """Some phases from the middle of what was kept, one row per stage: what each worked on, and the gaps between."""
    entries = list(timeline)
    known = sorted({entry.phase for entry in entries})
    wanted = set(known[max(0, (len(known) - phases) // 2) :][:phases])
    shown = [entry for entry in entries if entry.phase in wanted]
    stages = sorted({entry.stage for entry in shown})[:_MOST_BARS]

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
        _legend_below(axes, 4)

    return Chart(title, draw, _bars_in(max(1, len(stages)), lines=2))


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


@dataclasses.dataclass(frozen=True)
class Pair:
    """One figure twice: predicted, and measured or simulated."""

    name: str
    predicted: float
    found: float
    unit: str

    @property
    def error(self) -> float:
        """(found - predicted) / predicted."""
        return self.found / self.predicted - 1 if self.predicted else math.nan


def pair_chart(pairs: Sequence[Pair], found: str = "measured") -> Chart:
    """How far each figure was found from its prediction, in percent."""
    shown = [pair for pair in pairs if math.isfinite(pair.error)]

    def draw(axes: Axes) -> None:
        rows = range(len(shown))
        for row, pair in zip(rows, shown, strict=True):
            colour = BLUE if abs(pair.error) <= 0.05 else RED
            axes.plot([0, pair.error * 100], [row, row], color=colour, lw=2)
            axes.plot(pair.error * 100, row, "o" if colour == BLUE else "D", color=colour, ms=7)
            text = f"{pair.predicted:.4g} predicted, {pair.found:.4g} {found} ({pair.error:+.1%})"
            axes.annotate(text, (1.0, row), xycoords=("axes fraction", "data"), xytext=(8, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
        most = max([5.0, *(abs(pair.error) * 115 for pair in shown)])
        axes.axvline(0, color="black", lw=1)
        axes.axvspan(-5, 5, color=GREY, alpha=0.12, lw=0)
        axes.set_xlim(-most, most)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_yticks(list(rows), [f"{pair.name} ({pair.unit})" if pair.unit else pair.name for pair in shown])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{found} against predicted, percent (band: within 5%)")

    return Chart(f"Predicted and {found}", draw, _bars_in(max(1, len(shown)), lines=1.4))


def _legend_below(axes: Axes, columns: int) -> None:
    """Under the axis label, whatever the height of the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    assert figure is not None, "charts are drawn on figures"
    below = axes.transAxes + ScaledTranslation(0, -_LEGEND_BELOW_IN, figure.dpi_scale_trans)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns, fontsize=9,
                handlelength=1.4, columnspacing=1.2)  # fmt: skip


def _plain_ticks(axes: Axes) -> None:
    """A logarithmic axis with numbers that people read: 0.5, 2, 30."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    wide = high / low > 200
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _of(shown: int, total: int, which: str) -> str:
    return "" if shown == total else f" (the {shown} {which} of {total})"


def _bars_in(bars: int, lines: float) -> float:
    return _MARGIN_IN + _BAR_IN * lines * bars
