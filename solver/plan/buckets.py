"""Ladders of compiled shapes: which sizes programs exist for, and which one a batch runs in.

XLA compiles one program per shape, so rows and lengths are rounded up to a rung. The simulator and the engine round
with the functions here, so padding is counted once and the set of reachable programs is a list.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools

# What it costs to cut a view out of the cache, in readings of the view: it is read, its copy allocated and written, and
# what changed goes back.
_CUT_READINGS = 4


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Ascending ladders; the last rung of each is its limit.

    Attributes:
      encode_rows: prompts in one encode call.
      encode_tokens: tokens per prompt in one encode call; a longer prompt is encoded in chunks of the last rung.
      decode_rows: rows of one decode call; the last rung is max_rows.
      cache_tokens: positions that attention reads; the last rung is the allocated length of a row.
    """

    encode_rows: tuple[int, ...]
    encode_tokens: tuple[int, ...]
    decode_rows: tuple[int, ...]
    cache_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            ladder = getattr(self, field.name)
            if not ladder or any(a >= b for a, b in itertools.pairwise(ladder)) or ladder[0] < 1:
                raise ValueError(f"buckets.{field.name}: {list(ladder)} is not a rising ladder of positive sizes")


def round_up(value: int, ladder: tuple[int, ...]) -> int:
    """The lowest rung that holds `value`. Raises ValueError above the last rung."""
    index = bisect.bisect_left(ladder, value)
    if index == len(ladder):
        raise ValueError(f"{value} exceeds the largest bucket {ladder[-1]}")
    return ladder[index]


def attended_tokens(reach_tokens: int, iterations: int, all_rows: bool, rungs: tuple[int, ...]) -> int:
    """The rung of cache_tokens that a decode call works on.

    A call on fewer rows or positions than the cache has copies them out once, and every iteration then reads less. On
    all rows, few iterations do not win that back: they attend to whole rows, where they lie.

    Args:
      reach_tokens: positions of the longest row by the end of the call.
      iterations: of the call.
      all_rows: the call's rows bucket is the largest.
      rungs: the ladder of cache_tokens.
    """
    shortest, whole = round_up(reach_tokens, rungs), rungs[-1]
    saved = iterations * (whole - shortest)
    return whole if all_rows and saved < _CUT_READINGS * shortest else shortest


def ladder(first: int, last: int, factor: float = 2.0) -> tuple[int, ...]:
    """Rungs from `first` to `last`, each about `factor` times the one before; `last` always stands in it."""
    rungs = []
    rung = min(first, last)
    while rung < last:
        rungs.append(rung)
        rung = max(rung + 1, round(rung * factor))
    return (*rungs, last)
