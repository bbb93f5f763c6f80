"""The Pareto front: throughput against the latency bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from solver.report.drawing import plain_ticks
from solver.report.page import BLUE, COLOURS, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A marker and a colour for every policy, the same in every chart.
_POLICY_MARKS = {
    "rra": ("o", BLUE), "waa": ("s", GREEN), "waa-c": ("P", GREEN), "waa-m": ("X", GREEN), "static": ("v", ORANGE),
    "dsi": ("^", ORANGE), "iteration": ("D", PURPLE), "chunked": ("p", RED), "disaggregated": ("h", SKY),
}  # fmt: skip


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
        plain_ticks(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(bound_label)
        axes.set_ylabel("requests per second")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize=9)
        else:
            axes.text(0.5, 0.5, "no plan under any of these bounds", ha="center", transform=axes.transAxes)

    return Chart(title, draw, 4.6)
