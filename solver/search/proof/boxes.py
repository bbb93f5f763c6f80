"""Rectangles of candidates, many at once: what is bounded, cut and, when small, spelled out."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints

Range = tuple[int, int]
Box = tuple[Range, Range]

# A whole box is first cut into about this many parts along each side.
FIRST_CUTS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """Rectangles of candidates, ends included: int64 [boxes] each.

    The first variable is B_E; the second is N_D, or the rows in flight where encode and decode run apart.
    """

    first_low: Ints
    first_high: Ints
    second_low: Ints
    second_high: Ints

    def __len__(self) -> int:
        return len(self.first_low)

    @property
    def points(self) -> Ints:
        """Candidates in each."""
        return (self.first_high - self.first_low + 1) * (self.second_high - self.second_low + 1)

    def take(self, which: Ints | NDArray[np.bool_]) -> Boxes:
        """Some of them, by index or mask."""
        return Boxes(self.first_low[which], self.first_high[which], self.second_low[which], self.second_high[which])

    def joined(self, other: Boxes) -> Boxes:
        return Boxes(
            np.concatenate([self.first_low, other.first_low]),
            np.concatenate([self.first_high, other.first_high]),
            np.concatenate([self.second_low, other.second_low]),
            np.concatenate([self.second_high, other.second_high]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class BoxBounds:
    """Bounds on the candidates of each box: float64 [boxes].

    Attributes:
      throughput_rps: no candidate exceeds it.
      latency_s, ttft_s, tpot_s: none undercuts them; `tpot_s` is 0 where it was not asked for.
      memory_share: of the capacity of the fullest stage, at least; infinite where rows go beyond what costs were
        tabulated for, so that no candidate of the box can be evaluated.
    """

    throughput_rps: Floats
    latency_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    memory_share: Floats


class Bounds(Protocol):
    """What the search asks of a policy: bounds for boxes of its two variables."""

    def bound(self, boxes: Boxes, with_tpot: bool) -> BoxBounds: ...


def first_cuts(box: tuple[tuple[int, int], tuple[int, int]]) -> Boxes:
    """A grid over the whole box."""
    (b_low, b_high), (n_low, n_high) = (_parts(low, high) for low, high in box)
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(len(b_low)), np.arange(len(n_low)), indexing="ij"))
    return Boxes(b_low[first], b_high[first], n_low[second], n_high[second])


def _parts(low: int, high: int) -> tuple[Ints, Ints]:
    """Ends of about FIRST_CUTS parts of low .. high."""
    edges = np.unique(np.round(np.geomspace(low, high + 1, FIRST_CUTS + 1)).astype(np.int64))
    return edges[:-1], edges[1:] - 1


def quarters(boxes: Boxes) -> Boxes:
    """Each box cut in both directions, at the middle by ratio; sides of one candidate stay whole."""
    return _halves(_halves(boxes, first=True), first=False)


def _halves(boxes: Boxes, first: bool) -> Boxes:
    low, high = (boxes.first_low, boxes.first_high) if first else (boxes.second_low, boxes.second_high)
    middle = _middle(low, high)
    wide = np.flatnonzero(low < high)
    everywhere = np.arange(len(boxes))
    left_high = np.where(low < high, middle, high)
    ends = np.concatenate([low, middle[wide] + 1]), np.concatenate([left_high, high[wide]])
    which = np.concatenate([everywhere, wide])
    other = boxes.take(which)
    if first:
        return Boxes(*ends, other.second_low, other.second_high)
    return Boxes(other.first_low, other.first_high, *ends)


def _middle(low: Ints, high: Ints) -> Ints:
    """By ratio, so that the left part ends there and the right one is not empty."""
    return np.clip(np.sqrt(low * (high + 1.0)).astype(np.int64), low, np.maximum(low, high - 1))


def middles(boxes: Boxes) -> tuple[Ints, Ints]:
    return _middle(boxes.first_low, boxes.first_high), _middle(boxes.second_low, boxes.second_high)


def candidates(boxes: Boxes) -> tuple[Ints, Ints]:
    """Every candidate of every box."""
    widths = boxes.second_high - boxes.second_low + 1
    which = np.repeat(np.arange(len(boxes)), boxes.points)
    begin = np.cumsum(boxes.points) - boxes.points
    offset = np.arange(len(which)) - begin[which]
    return boxes.first_low[which] + offset // widths[which], boxes.second_low[which] + offset % widths[which]
