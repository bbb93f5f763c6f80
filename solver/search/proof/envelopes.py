"""Noise in a profile, taken both ways: the pipeline at its worst and at its best reading (scheduling.md, 2.6 h).

A time that falls as rows rise is often noise. The upper reading replaces each entry by the largest at so many rows or
fewer, the lower one by the least at so many rows or more; both are monotone. A plan that keeps its limits on the upper
reading keeps them whichever is true, a bound from floors of the lower reading holds whichever is true, and the gap
between them says what the noise is worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from solver.facts.workload import Floats
from solver.simulate.costs import Pipeline, UnitCosts


def upper(pipeline: Pipeline) -> Pipeline:
    """Every time the largest seen at as many rows or fewer."""
    return _read(pipeline, lambda seconds: np.maximum.accumulate(seconds, axis=-1))


def lower(pipeline: Pipeline) -> Pipeline:
    """Every time the least seen at as many rows or more; no rows still cost nothing."""

    def least(seconds: Floats) -> Floats:
        found = np.minimum.accumulate(seconds[..., ::-1], axis=-1)[..., ::-1].copy()
        found[..., 0] = seconds[..., 0]
        return found

    return _read(pipeline, least)


def _read(pipeline: Pipeline, reading: Callable[[Floats], Floats]) -> Pipeline:
    units: dict[int, UnitCosts] = {}
    for stage in pipeline.stages:
        unit = stage.unit
        if id(unit) not in units:
            units[id(unit)] = dataclasses.replace(
                unit,
                encode_s=reading(unit.encode_s),
                decode_s=reading(unit.decode_s),
                embed_encode_s=reading(unit.embed_encode_s),
                embed_decode_s=reading(unit.embed_decode_s),
                head_encode_s=reading(unit.head_encode_s),
                head_decode_s=reading(unit.head_decode_s),
                hand_over_encode_s={level: reading(column) for level, column in unit.hand_over_encode_s.items()},
                hand_over_decode_s={level: reading(column) for level, column in unit.hand_over_decode_s.items()},
            )
    stages = tuple(dataclasses.replace(stage, unit=units[id(stage.unit)]) for stage in pipeline.stages)
    return dataclasses.replace(pipeline, stages=stages)
