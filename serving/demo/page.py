"""The demo's report: one HTML page with what was promised, what came, and what the others did under the same load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.demo.planning import Planned
from serving.demo.report import NAMES, Outcome, conclusions, gain
from solver.report import words
from solver.report.page import COLOURS, GREY, Chart, write_report
from solver.report.pair_chart import Pair, pair_chart
from solver.report.plan_charts import plan_charts
from solver.report.timeline_chart import timeline_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MILLISECONDS = 1e3
_STYLES = ("-", "--", "-.", ":")


def write_page(path: Path, planned: Planned, outcomes: Sequence[Outcome]) -> None:
    """Writes the page whole or not at all."""
    rra = outcomes[0]
    lines = [
        *words.summary(planned.plans["rra"]),
        *(f"result: {line}" for line in conclusions(outcomes, planned.bound_s)),
    ]
    charts = [
        throughput_chart(outcomes),
        latency_chart(outcomes, planned.bound_s),
        pair_chart(pairs(rra)),
        timeline_chart(rra.figures.timeline(), "Ten phases of the plan"),
        *plan_charts(rra.plan),
    ]
    write_report(str(path), "The demo: planned, proven, run", charts, lines)


def throughput_chart(outcomes: Sequence[Outcome]) -> Chart:
    """One bar for each schedule, and what was predicted for the plan."""

    def draw(axes: Axes) -> None:
        rows = range(len(outcomes))
        rates = [outcome.summary.requests_per_s for outcome in outcomes]
        axes.barh(rows, rates, 0.6, color=[COLOURS[row] for row in rows])
        predicted = outcomes[0].plan.prediction
        for row, (outcome, rate) in enumerate(zip(outcomes, rates, strict=True)):
            note = f"{rate:.0f}"
            if row:
                note += f"; RRA answers {gain(outcomes[0], outcome):.2f} times as many"
            elif predicted is not None:
                note += f"; {predicted.throughput_rps:.0f} predicted (dotted)"
                axes.plot([predicted.throughput_rps] * 2, [-0.42, 0.42], ":", color="black", lw=2)
            at = max(rate, predicted.throughput_rps) if predicted is not None and not row else rate
            axes.annotate(note, (at, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(list(rows), [NAMES[outcome.policy] for outcome in outcomes])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * max(rates))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("requests per second, over gRPC")

    return Chart("Throughput of the plan and of the tuned baselines", draw, 3.4)


def latency_chart(outcomes: Sequence[Outcome], bound_s: float) -> Chart:
    """Share of requests answered within each time, beside the bound."""

    def draw(axes: Axes) -> None:
        for row, outcome in enumerate(outcomes):
            known = np.sort([r.encode_to_last_s for r in outcome.results if np.isfinite(r.encode_to_last_s)])
            if len(known):
                share = np.arange(1, len(known) + 1) / len(known) * 100
                axes.plot(known * _MILLISECONDS, share, _STYLES[row], color=COLOURS[row], label=NAMES[outcome.policy])
        axes.axvline(bound_s * _MILLISECONDS, color="black", lw=1.5, label=f"bound: {bound_s * _MILLISECONDS:.0f} ms")
        axes.axhline(99, color=GREY, lw=1, ls=":", label="99%")
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds from the start of a request's encode phase to its last token")
        axes.set_ylabel("percent of requests")
        axes.legend(loc="lower right", fontsize=9)

    return Chart("Latency beside the bound", draw, 4.2)


def pairs(outcome: Outcome) -> list[Pair]:
    """Figures of the plan that were both predicted and measured."""
    fields = outcome.figures.fields
    known = [
        ("throughput", "requests_per_s", "requests/s"),
        (f"latency p{fields['latency_percentile']:g}", "latency_s", "s"),
    ]
    return [
        Pair(name, float(predicted), float(measured), unit)
        for name, field, unit in known
        if (predicted := fields[f"predicted_{field}"]) is not None
        and (measured := fields[f"measured_{field}"]) is not None
    ]
