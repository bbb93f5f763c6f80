"""Predicted beside measured, or simulated: how far each figure is off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from solver.report.drawing import height_of
from solver.report.page import BLUE, GREY, RED, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    return Chart(f"Predicted and {found}", draw, height_of(max(1, len(shown)), lines=1.4))
