"""Logs and counts of others, as traces and histograms: the caller names the columns, nothing is guessed.

From here `exegpt fit` makes a workload file (`solver.facts.workload_file`).
"""

from __future__ import annotations

import numpy as np

from solver.facts.columns import Column, read_columns
from solver.facts.histogram import Histogram, histogram
from solver.facts.workload import Floats, Trace, Workload, merge


def read_trace(source: str, input_column: str, output_column: str, arrival_column: str | None) -> tuple[Trace, int]:
    """A raw log as a Trace, and how many requests stood out of order; those are sorted by arrival.

    Args:
      source: CSV with a header or JSON lines, .gz as well; "-" for standard input.
      arrival_column: None where the log tells no times.

    Raises:
      ValueError: one line that names file, line, column and value.
    """
    wanted = [Column(input_column, "length"), Column(output_column, "length")]
    if arrival_column is not None:
        wanted.append(Column(arrival_column, "time"))
    found = read_columns(source, wanted)
    inputs, outputs = found[0].astype(np.int64), found[1].astype(np.int64)
    if arrival_column is None:
        return Trace(None, inputs, outputs), 0
    arrival = found[2]
    order = np.argsort(arrival, kind="stable")
    late = int((np.diff(arrival) < 0).sum())
    return Trace(arrival[order] - arrival.min(), inputs[order], outputs[order]), late


def read_histogram(source: str, length_column: str = "length", count_column: str = "count") -> Histogram:
    """One length's counts from CSV or JSON lines. Raises ValueError with one line, also where all counts are 0."""
    lengths, count = read_columns(source, [Column(length_column, "length"), Column(count_column, "count")])
    _check_counts(source, count_column, count)
    return histogram(lengths.astype(np.int64), count)


def read_pairs(
    source: str, name: str, origin: str, input_column: str, output_column: str, count_column: str = "count"
) -> Workload:
    """A joint histogram from CSV or JSON lines as a Workload; pairs never seen are left out."""
    wanted = [Column(input_column, "length"), Column(output_column, "length"), Column(count_column, "count")]
    inputs, outputs, count = read_columns(source, wanted)
    _check_counts(source, count_column, count)
    return merge(name, origin, inputs.astype(np.int64), outputs.astype(np.int64), count)


def _check_counts(source: str, column: str, count: Floats) -> None:
    if not count.sum() > 0:
        raise ValueError(f"{source}: {column}: sums to 0; give at least one request")
