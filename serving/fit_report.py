"""What `exegpt fit` shows: figures of both lengths, their histograms, and how a trace moves in time."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from solver.facts.histogram import Histogram, margins
from solver.facts.trace_stats import Arrivals, Drift, arrivals_of, drift_of
from solver.facts.workload import Workload

_BARS = 12
_BAR_WIDTH = 13


def show(workload: Workload, console: Console) -> None:
    """Prints everything about a workload."""
    console.print(f"{workload.name}: {workload.source}", markup=False)
    inputs, outputs = margins(workload)
    console.print(_lengths(inputs, outputs))
    pairs = len(workload.probability)
    console.print(f"correlation of input and output length: {workload.correlation:.3f}; {pairs:,} distinct pairs")
    console.print(_histograms(inputs, outputs))
    if workload.trace is not None:
        console.print(_in_time(len(workload.trace.input_tokens), arrivals_of(workload.trace), drift_of(workload.trace)))


def _lengths(inputs: Histogram, outputs: Histogram) -> Table:
    table = Table("tokens", "mean", "deviation", "50th", "90th", "99th", "longest", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, side in (("input", inputs), ("output", outputs)):
        quantiles = [f"{side.percentile(percent):,}" for percent in (50, 90, 99, 100)]
        table.add_row(name, f"{side.mean:,.1f}", f"{side.std:,.1f}", *quantiles)
    return table


def _histograms(inputs: Histogram, outputs: Histogram) -> Table:
    table = Table("input", "share", "", "output", "share", "", show_edge=False, padding=(0, 1))
    sides = [_bars(inputs), _bars(outputs)]
    for row in range(max(map(len, sides))):
        cells = [side[row] if row < len(side) else ("", "", "") for side in sides]
        table.add_row(*cells[0], *cells[1])
    return table


def _bars(side: Histogram) -> list[tuple[str, str, str]]:
    """(range, share, bar) up to the 99th percentile in equal steps; the last range holds the tail."""
    width = max(1, -(-side.percentile(99) // _BARS))
    place = np.minimum((side.lengths - 1) // width, _BARS)
    share = np.bincount(place, weights=side.share)
    rows = []
    for i, part in enumerate(share.tolist()):
        low, high = i * width + 1, (i + 1) * width
        span = f"{low:,} and more" if i == _BARS else (f"{low:,}" if width == 1 else f"{low:,} - {high:,}")
        rows.append((span, f"{100 * part:.1f}%", "█" * round(_BAR_WIDTH * part / float(share.max()))))
    return rows


def _in_time(requests: int, arrivals: Arrivals | None, drift: Drift) -> str:
    lines = [f"trace: {requests:,} requests"]
    if arrivals is not None:
        lines[0] += (
            f" in {arrivals.span_s:,.1f} s: {arrivals.rate_rps:.3g} per second, between {arrivals.lowest_rps:.3g} and"
            f" {arrivals.highest_rps:.3g} over {drift.windows} windows; deviation of the times"
            f" between them over their mean {arrivals.gap_variation:.2f} (Poisson: 1)"
        )
    lines.append(
        f"drift of the mean output over {drift.windows} windows: {100 * (drift.lowest - 1):+.1f}% to"
        f" {100 * (drift.highest - 1):+.1f}%, at most {100 * drift.step:.1f}% from one to the next (chance alone:"
        f" {100 * drift.chance:.1f}% deviation)"
    )
    return "\n".join(lines)
