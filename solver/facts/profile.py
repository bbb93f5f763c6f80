"""Measured times of one model's layers on one kind of device: what every prediction rests on.

A Profile is measured by `exegpt_jax.profiler` on the devices at hand, or composed from published tables by
`solver.importers`. Each number says whether it was measured, interpolated, extrapolated or estimated; nothing unknown
is replaced in silence.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

from solver.facts.model_spec import LayerKind
from solver.facts.workload import Floats

SCHEMA_VERSION = 1


class Mark(enum.IntEnum):
    """Where a number comes from; of several, the largest counts."""

    MEASURED = 0
    INTERPOLATED = 1
    EXTRAPOLATED = 2
    ESTIMATED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Seconds on a grid of two sizes, linear between its points.

    Attributes:
      first, second: float64, rising: the grid's sizes (rows, then tokens or context; one of them may be a single 0).
      seconds: float64 [first, second], positive.
      marks: uint8 [first, second] of `Mark`.
    """

    first: Floats
    second: Floats
    seconds: Floats
    marks: NDArray[np.uint8]

    def at(self, first: Floats | float, second: Floats | float) -> Floats:
        """Seconds at these sizes (broadcast together).

        Below the grid its first size counts; beyond it the last two points go on in a straight line, or level where
        they fall: a noisy end must not promise that more work takes less and less time, or none.
        """
        x, i = _place(self.first, np.asarray(first, np.float64))
        y, j = _place(self.second, np.asarray(second, np.float64))
        i2, j2 = np.minimum(i + 1, len(self.first) - 1), np.minimum(j + 1, len(self.second) - 1)
        s = self.seconds
        return _line(_line(s[i, j], s[i, j2], y), _line(s[i2, j], s[i2, j2], y), x)


def _place(points: Floats, value: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Index of the grid's point below each value and how far it lies towards the next (beyond 1 outside)."""
    if len(points) == 1:
        return np.zeros_like(value), np.zeros(value.shape, np.intp)
    value = np.maximum(value, points[0])
    index = np.clip(np.searchsorted(points, value, side="right") - 1, 0, len(points) - 2)
    return (value - points[index]) / (points[index + 1] - points[index]), index


def _line(low: Floats, high: Floats, share: Floats) -> Floats:
    """From `low` at 0 to `high` at 1, and on."""
    return np.where(share <= 1, low * (1 - share) + high * share, high + np.maximum(high - low, 0.0) * (share - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class LayerTimes:
    """One layer of one kind at one tensor degree, collectives inside the island included.

    Attributes:
      tensor: degree.
      kind: of the layer.
      encode: seconds by rows and tokens per row of one encode call.
      decode: seconds of one decode iteration by rows and context (positions attended to per row).
    """

    tensor: int
    kind: LayerKind
    encode: Table
    decode: Table


@dataclasses.dataclass(frozen=True, eq=False)
class EndTimes:
    """What the first and the last stage do beside their layers, at one tensor degree.

    Attributes:
      tensor: degree.
      embed: seconds by rows x tokens (`first`; `second` is a single 0) of looking up embeddings.
      head: seconds by rows (`first`) of norm, head and sampling.
    """

    tensor: int
    embed: Table
    head: Table


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Times of one model on one kind of device.

    Attributes:
      model: name, for people.
      shape: `shape_digest` of the ModelSpec; a profile never serves another.
      dtype, cache_dtype: of weights and activations; of keys and values.
      device_kind: as the cluster names it.
      source: how the numbers were got: tool, versions, hardware, files.
      layers: one entry per (tensor degree, layer kind).
      ends: one entry per tensor degree.
      dispatch_s: host time of an encode call on a stage.
      phase_s: fixed cost of a decode call beside its iterations (0 where iterations are dispatched one by one).
      padded: programs are compiled for buckets, so rows and tokens are rounded up (this engine); False: exact sizes.
      stage_dispatch_s: host time of one decode iteration of a micro-batch on one of several stages; None: `dispatch_s`.
      spread: relative spread of repeated measurements (90th percentile over median, minus 1): the default margin.
      schema_version: of the file.
    """

    model: str
    shape: str
    dtype: str
    cache_dtype: str
    device_kind: str
    source: str
    layers: tuple[LayerTimes, ...]
    ends: tuple[EndTimes, ...]
    dispatch_s: float
    phase_s: float
    padded: bool
    spread: float
    stage_dispatch_s: float | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def iteration_dispatch_s(self) -> float:
        """Host time of one decode iteration of a micro-batch on one of several stages."""
        return self.dispatch_s if self.stage_dispatch_s is None else self.stage_dispatch_s

    @property
    def tensor_degrees(self) -> tuple[int, ...]:
        return tuple(sorted({times.tensor for times in self.layers}))

    def layer(self, tensor: int, kind: LayerKind) -> LayerTimes:
        """Raises KeyError with a line for people where that degree or kind was not measured."""
        for times in self.layers:
            if times.tensor == tensor and times.kind == kind:
                return times
        raise KeyError(f"profile of {self.model}: no times for tensor={tensor}, layer kind {kind}; profile them")

    def end(self, tensor: int) -> EndTimes:
        for times in self.ends:
            if times.tensor == tensor:
                return times
        raise KeyError(f"profile of {self.model}: no embedding and head at tensor={tensor}; profile them")
