"""The figures of a load for machines; NaN, which is no JSON, becomes null."""

from __future__ import annotations

import dataclasses
import math

from serving.load.figures import Figures
from serving.load.messages import Sample
from solver.plan.bounds import Bounds


def fields_of(figures: Figures, bounds: Bounds, title: str) -> dict[str, object]:
    """Of the line LOAD and the results file."""
    limits = {"latency_s": bounds.latency_s, "ttft_s": bounds.ttft_s, "tpot_s": bounds.tpot_s}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    found = {"load": title, "bounds": {**given, "from": bounds.bound_from} if given else None}
    return _plain_fields({**found, **dataclasses.asdict(figures)})


def row_of(sample: Sample) -> dict[str, object]:
    """One line of --save_requests."""
    return _plain_fields({**dataclasses.asdict(sample), "tokens": sample.tokens})


def _plain_fields(found: dict[str, object]) -> dict[str, object]:
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return _plain_fields(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
