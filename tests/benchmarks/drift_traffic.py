"""Traffic that drifts, for `drift`: a day of a real client, compressed, and a step in the length of answers.

The day is client chunk 1 of ServeGen's deepseek-r1 (arXiv 2505.09999): a rate and an arrival process for every ten
minutes, lengths for every six hours. Lengths are scaled to the model, time is compressed, and the rate is scaled so
that the busiest six hours ask for a given share of what a plan for them answers.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import gzip
import io
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from solver.facts.histogram import Histogram, histogram
from solver.facts.histogram import joint as joined
from solver.facts.truncated_normal import Moments, lengths_pmf
from solver.facts.workload import Floats, Workload
from solver.search.margins import drifted

MOST_INPUT, MOST_OUTPUT = 64, 160
CACHE_TOKENS = MOST_INPUT + MOST_OUTPUT
STEP = 0.6
_DAY_S = 24 * 3600.0
# Mean lengths of the day's first six hours, once scaled.
_DAY_INPUT, _DAY_OUTPUT = 24.0, 24.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
    """What is asked.

    Attributes:
      name: of the results.
      parts: lengths, one after the other.
      ends: float64 [parts]: share of the time at which each part ends; the last is 1.
      saturated: whoever asks never waits: the queue does not run dry. Else `intervals` says when they come.
      intervals: (share of the time at which it ends, rate, kind and shape of the arrival process) in order.
    """

    name: str
    parts: tuple[Workload, ...]
    ends: Floats
    saturated: bool
    intervals: tuple[tuple[float, float, str, float], ...] = ()

    def part_at(self, share: float) -> int:
        return min(int(np.searchsorted(self.ends, share, side="right")), len(self.parts) - 1)

    def arrivals(self, seconds: float, capacity_rps: Sequence[float], load: float, seed: int) -> Floats:
        """float64 [requests]: moments within `seconds`; the busiest part asks for `load` times its capacity."""
        rng = np.random.default_rng(seed)
        starts = [0.0, *(end for end, *_ in self.intervals[:-1])]
        asked: list[list[float]] = [[] for _ in self.parts]
        for start, (end, rate, _, _) in zip(starts, self.intervals, strict=True):
            asked[self.part_at((start + end) / 2)].append(rate)
        busiest = max(float(np.mean(rates)) / rps for rates, rps in zip(asked, capacity_rps, strict=True))
        found: list[float] = []
        now_s = 0.0
        for end, rate, kind, shape in self.intervals:
            if rate == 0:
                now_s = end * seconds
                continue
            mean_s = busiest / (load * rate)
            scale_s = mean_s / (shape if kind == "Gamma" else math.gamma(1 + 1 / shape))
            while now_s < end * seconds:
                now_s += scale_s * (rng.gamma(shape) if kind == "Gamma" else rng.weibull(shape))
                found.append(now_s)
        return np.array([moment for moment in found if moment < seconds])


def step() -> Scenario:
    """Lengths after ExeGPT's task S, and from a third of the time on answers that are longer by 60%."""
    outputs = lengths_pmf(Moments(31.7, 13.4, 80, "parent"))
    inputs = lengths_pmf(Moments(24.0, 12.0, MOST_INPUT, "parent"))
    before = joined("step", "truncated normals", *(histogram(np.arange(1, len(p) + 1), p) for p in (inputs, outputs)))
    after = drifted(before, STEP, CACHE_TOKENS)
    return Scenario("step", (before, after), np.array([1 / 3, 1.0]), saturated=True)


def day(data: pathlib.Path) -> Scenario:
    """From the folder of ServeGen's client."""
    with gzip.open(data / "chunk-1-dataset.json.gz", "rt", encoding="utf-8") as file:
        windows = {float(start): lengths for start, lengths in json.load(file).items()}
    sides = [
        [_histogram(windows[start][name]) for start in sorted(windows)] for name in ("input_tokens", "output_tokens")
    ]
    scale_in, scale_out = _DAY_INPUT / sides[0][0].mean, _DAY_OUTPUT / sides[1][0].mean
    parts = tuple(
        joined(f"day {number}", "ServeGen", _scaled(i, scale_in, MOST_INPUT), _scaled(o, scale_out, MOST_OUTPUT))
        for number, (i, o) in enumerate(zip(*sides, strict=True))
    )
    text = gzip.decompress((data / "chunk-1-trace.csv.gz").read_bytes()).decode()
    rows = [(float(row[0]), float(row[1]), row[3], float(row[4])) for row in csv.reader(io.StringIO(text)) if row]
    ends = [row[0] / _DAY_S for row in rows[1:]] + [1.0]
    intervals = tuple((end, rate, kind, shape) for end, (_, rate, kind, shape) in zip(ends, rows, strict=True))
    part_ends = [start / _DAY_S for start in sorted(windows)[1:]] + [1.0]
    return Scenario("day", parts, np.array(part_ends), saturated=False, intervals=intervals)


def _histogram(text: str | dict[str, float]) -> Histogram:
    """From {length: probability}, which the file keeps as a string."""
    shares = ast.literal_eval(text) if isinstance(text, str) else text
    return histogram(np.array([int(length) for length in shares]), np.array(list(shares.values())))


def _scaled(lengths: Histogram, scale: float, most: int) -> Histogram:
    return histogram(np.clip(np.rint(lengths.lengths * scale), 1, most).astype(np.int64), lengths.share)
