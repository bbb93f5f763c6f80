"""Reports as files: charts drawn by matplotlib, put into one SVG or one HTML page that needs nothing beside it.

A `Chart` knows how to draw itself on axes; what shows numbers (the files beside this one) makes Charts, and
`write_report` decides on paper. Equal reports are equal bytes: no dates, fixed ids. matplotlib comes in only here and
when a report is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which every common kind of colour vision tells apart; hatches and markers do so in print.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#7F7F7F"),
)
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
ENDINGS = (".html", ".svg")

_WIDTH_IN = 8.0
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#DDDDDD",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "exegpt",
}
_PAGE_STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;line-height:1.5}"
    "figure{margin:1.5rem 0}svg{width:100%;height:auto}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
)


@dataclasses.dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
      title: above it; says what it shows.
      draw: draws on empty axes: labels with units, data, legend.
      height_in: inches, at 8 inches of width.
    """

    title: str
    draw: Callable[[Axes], None]
    height_in: float = 4.0


def write_report(target: str, title: str, charts: Sequence[Chart], lines: Sequence[str] = ()) -> None:
    """Writes FILE.svg (the charts, one below another) or FILE.html (with `lines` above them), whole or not at all."""
    if not target.endswith(ENDINGS):
        raise ValueError(f"report: {target} has no known ending; give one of {', '.join(ENDINGS)}")
    text = to_html(title, charts, lines) if target.endswith(".html") else to_svg(charts)
    path = Path(target)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_svg(charts: Sequence[Chart]) -> str:
    """One SVG document with every chart."""
    with _figure(charts) as figure:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "exegpt"})
    return buffer.getvalue()


def to_html(title: str, charts: Sequence[Chart], lines: Sequence[str] = ()) -> str:
    """One page: `lines` of the form "name: text" as a table, then the charts."""
    rows = "".join(
        "<tr><th>{}</th><td>{}</td></tr>".format(*(html.escape(part) for part in _name_and_text(line)))
        for line in lines
    )
    pictures = "\n".join(
        f'<figure role="img" aria-label="{html.escape(chart.title)}">{_inline(to_svg([chart]), index)}</figure>'
        for index, chart in enumerate(charts)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{_PAGE_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f"{f'<table>{rows}</table>' if rows else ''}\n{pictures}\n</body>\n</html>\n"
    )


def _name_and_text(line: str) -> tuple[str, str]:
    name, colon, text = line.partition(": ")
    return (name, text) if colon else ("", line)


def _inline(svg: str, index: int) -> str:
    """An SVG document as an element; ids are unique in the page."""
    element = svg[svg.index("<svg") :]
    for attribute in ('id="', 'href="#', "url(#"):
        element = element.replace(attribute, f"{attribute}c{index}_")
    return element


@contextlib.contextmanager
def _figure(charts: Sequence[Chart]) -> Iterator[Figure]:
    """A figure with a row for each chart, drawn; its style ends with the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        heights = [chart.height_in for chart in charts]
        figure = Figure(figsize=(_WIDTH_IN, sum(heights)), layout="constrained")
        # Each chart is laid out by itself, so that wide labels of one do not narrow the others.
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for chart, row in zip(charts, rows, strict=True):
            axes = row.subplots()
            axes.set_title(chart.title)
            chart.draw(axes)
        yield figure
