"""A load in two pictures: how many requests were answered within each time, and what was sent and answered when."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.load.messages import Sample
from solver.facts.workload import Floats
from solver.plan.bounds import Bounds
from solver.report.page import BLUE, GREEN, GREY, ORANGE, RED, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS, _FEWEST_BINS, _REQUESTS_A_BIN = 60, 8, 10
_LEGEND: dict[str, Any] = {"fontsize": 9, "frameon": True, "facecolor": "white", "edgecolor": "none"}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Per second, in bins of equal width.

    Attributes:
      edge_s: float64 [bins + 1].
      sent, answered, failed: float64 [bins], requests; `tokens` likewise.
    """

    edge_s: Floats
    sent: Floats
    answered: Floats
    failed: Floats
    tokens: Floats


def charts_of(samples: Sequence[Sample], bounds: Bounds) -> list[Chart]:
    return [_times(samples, bounds), _timeline(samples)]


def rates_of(samples: Sequence[Sample], bins: int) -> Rates:
    """What went and came in each part of the load."""
    ends = [value for s in samples for value in (s.sent_s, s.last_token_s) if not math.isnan(value)]
    edge_s = np.linspace(min(s.sent_s for s in samples), max(ends) + 1e-9, bins + 1)
    width_s = edge_s[1] - edge_s[0]
    answered = [s for s in samples if s.error is None]

    def per_second(at_s: list[float], weight: list[int] | None = None) -> Floats:
        return np.histogram(at_s, edge_s, weights=weight)[0] / width_s

    return Rates(
        edge_s=edge_s,
        sent=per_second([s.sent_s for s in samples]),
        answered=per_second([s.last_token_s for s in answered]),
        failed=per_second([s.sent_s for s in samples if s.error is not None]),
        tokens=per_second([t for s in samples for t in s.message_s], [n for s in samples for n in s.message_tokens]),
    )


def _times(samples: Sequence[Sample], bounds: Bounds) -> Chart:
    answered = [s for s in samples if s.error is None]
    curves = (
        ("first token, from arrival", ORANGE, "--", [s.first_token_s - s.planned_s for s in answered]),
        ("last token, from the start of encode", GREEN, "-.", [s.encode_to_last_s for s in answered]),
        ("last token, from arrival", BLUE, "-", [s.last_token_s - s.planned_s for s in answered]),
    )
    limits = (("bound on the first token", bounds.ttft_s, ":"), ("bound on latency", bounds.latency_s, "-"))

    def draw(axes: Axes) -> None:
        for name, colour, style, values in curves:
            known = np.sort([value for value in values if not math.isnan(value)])
            if len(known):
                axes.plot(known, np.arange(1, len(known) + 1) / len(known) * 100, style, color=colour, label=name)
        for name, limit, style in limits:
            if limit is not None:
                axes.axvline(limit, color="black", lw=1.4, ls=style, label=f"{name}: {limit:g} s")
        axes.axhline(99, color=GREY, lw=1, ls=":")
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        axes.set_ylabel("percent of answered requests")
        if answered:
            axes.legend(loc="lower right", **_LEGEND)

    return Chart("Requests answered within each time", draw, 4.2)


def _timeline(samples: Sequence[Sample]) -> Chart:
    rates = rates_of(samples, max(_FEWEST_BINS, min(_MOST_BINS, len(samples) // _REQUESTS_A_BIN)))

    def draw(axes: Axes) -> None:
        for name, colour, style, values in (
            ("sent", GREY, "--", rates.sent),
            ("answered", BLUE, "-", rates.answered),
            ("failed", RED, ":", rates.failed),
        ):
            if values.any():
                axes.stairs(values, rates.edge_s, color=colour, ls=style, lw=1.6, label=f"requests {name}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds of the load")
        axes.set_ylabel("requests per second")
        right = axes.twinx()
        right.stairs(rates.tokens, rates.edge_s, color=ORANGE, lw=1.2, label="tokens (right)")
        right.set_ylim(bottom=0)
        right.set_ylabel("tokens per second")
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        right.legend(handles=handles, loc="lower right", **_LEGEND)

    return Chart("What was sent and answered", draw, 3.8)
