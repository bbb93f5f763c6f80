"""What the charts of this folder share: heights by bars, legends, and axes with numbers that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 32

_BAR_IN = 0.3
_MARGIN_IN = 1.6
_LEGEND_BELOW_IN = 0.42


def legend_below(axes: Axes, columns: int) -> None:
    """Under the axis label, whatever the height of the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    assert figure is not None, "charts are drawn on figures"
    below = axes.transAxes + ScaledTranslation(0, -_LEGEND_BELOW_IN, figure.dpi_scale_trans)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns, fontsize=9,
                handlelength=1.4, columnspacing=1.2)  # fmt: skip


def plain_ticks(axes: Axes) -> None:
    """A logarithmic axis with numbers that people read: 0.5, 2, 30."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    wide = high / low > 200
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def of_total(shown: int, total: int, which: str) -> str:
    return "" if shown == total else f" (the {shown} {which} of {total})"


def height_of(bars: int, lines: float) -> float:
    return _MARGIN_IN + _BAR_IN * lines * bars
