"""Gains of the better of RRA and WAA over a baseline, by groups of models, and the gains that the paper publishes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.benchmarks.paper_cases import LARGE

BASELINE_NAMES = {"ft": "static", "dsi": "dsi", "iteration": "iteration", "chunked": "chunked"}
# Average and range of the gain over FasterTransformer that the paper publishes.
PUBLISHED = {"small and middle": "2.0x, at most 5.4x", "large": "3.2x, 1.1x to 15.2x"}


def best_rps(row: dict) -> float:
    """Of RRA and WAA."""
    return max(row["rra"]["rps"], row["waa"]["rps"])


def gain(row: dict, baseline: str) -> float | None:
    """Best of RRA and WAA over a baseline; None where the baseline has no plan or was not swept."""
    below = row.get(baseline)
    return best_rps(row) / below["rps"] if below and below["rps"] > 0 else None


def stats(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, geometric = np.mean(values), math.exp(np.mean(np.log(np.maximum(values, 1e-9))))
    return f"{mean:.2f}x ({geometric:.2f}x), {min(values):.2f}x to {max(values):.2f}x"


def groups_of(rows: list[dict]) -> dict[str, list[dict]]:
    return {
        "small and middle": [row for row in rows if row["model"] not in LARGE],
        "large": [row for row in rows if row["model"] in LARGE],
    }


def gains_of(rows: list[dict], baseline: str) -> list[float]:
    return [found for row in rows if (found := gain(row, baseline)) is not None]


def gap_of(found: dict) -> float | None:
    """Share of a search's bound that it left open; None where time ended it without one."""
    bound_rps = found["bound_rps"]
    if bound_rps is None:
        return None
    return max(0.0, 1 - found["rps"] / bound_rps) if bound_rps else 0.0
