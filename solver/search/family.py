"""Families of placements of one copy: what the joint proof bounds at once, and how a family is cut into parts.

    any number of stages, any degrees -> ranges of stages, halved -> how many stages of each degree
        -> of two degrees, ranges of layers at the higher one, halved

Every placement of a family lies in one of its parts, so the largest bound of the parts holds for the family.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from solver.search.uniform import micro_batch_counts

# A family of more multisets of degrees than this is left whole.
MOST_MULTISETS = 64


@dataclasses.dataclass(frozen=True)
class Family:
    """Placements that are bounded together.

    Attributes:
      stages: fewest and most.
      encode_micro_batches, decode_micro_batches: m_E and m_D.
      counts: (tensor degree, its stages) of each degree that occurs, rising; None: whatever the devices hold.
      layers: of two degrees: fewest and most layers at the higher one; None: not said.
    """

    stages: tuple[int, int]
    encode_micro_batches: int
    decode_micro_batches: int
    counts: tuple[tuple[int, int], ...] | None = None
    layers: tuple[int, int] | None = None


def all_families(most_stages: int) -> Iterator[Family]:
    """One for every pair of micro-batch counts, with the stages that it is tried with."""
    counts = [2**power for power in range((2 * most_stages).bit_length())]
    for m_e in counts:
        for m_d in counts:
            fitting = [n for n in range(1, most_stages + 1) if {m_e, m_d} <= set(micro_batch_counts(n))]
            if fitting:
                yield Family((fitting[0], fitting[-1]), m_e, m_d)


def parts(family: Family, degrees: Sequence[int], devices: int, layers: int) -> list[Family]:
    """What the family is cut into next; nothing where it is as small as families get.

    Args:
      degrees: tensor degrees that stages may have, rising.
      devices: of one copy.
      layers: of the model.
    """
    fewest, most = family.stages
    if fewest < most:
        middle = math.isqrt(fewest * most)
        return [dataclasses.replace(family, stages=each) for each in ((fewest, middle), (middle + 1, most))]
    if family.counts is None:
        found = list(_multisets(degrees, most, devices))
        if len(found) > MOST_MULTISETS:
            return []
        return [dataclasses.replace(family, counts=counts, layers=_layers(counts, layers)) for counts in found]
    if family.layers is None or family.layers[0] == family.layers[1]:
        return []
    low, high = family.layers
    middle = (low + high) // 2
    return [dataclasses.replace(family, layers=each) for each in ((low, middle), (middle + 1, high))]


def _multisets(degrees: Sequence[int], stages: int, devices: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every way to give so many stages degrees that the devices hold."""
    if not degrees:
        if stages == 0:
            yield ()
        return
    *lower, tensor = degrees
    for count in range(min(stages, devices // tensor) + 1):
        own = ((tensor, count),) if count else ()
        for rest in _multisets(lower, stages - count, devices - tensor * count):
            yield (*rest, *own)


def _layers(counts: tuple[tuple[int, int], ...], layers: int) -> tuple[int, int] | None:
    """Of two degrees: how many layers the higher one may have, each stage at least one."""
    if len(counts) != 2:
        return None
    (_, low), (_, high) = counts
    return high, layers - low
