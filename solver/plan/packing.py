"""Which prompts share an encode call: the rule that the runner follows and the simulator counts with.

Longest first, so that a call's padding is decided by prompts of about its length; a call takes as many as its rung of
rows holds, and shorter prompts fill what would be padding. Where the next rung of rows would stand half empty, the rung
below is filled instead and the rest go on to another call.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from solver.plan.buckets import Buckets, round_up


@dataclasses.dataclass(frozen=True)
class PackedCall:
    """One encode call.

    Attributes:
      members: indices of the prompts in it.
      rows_bucket, tokens_bucket: its compiled shape.
    """

    members: tuple[int, ...]
    rows_bucket: int
    tokens_bucket: int


def pack(lengths: Sequence[int], buckets: Buckets) -> tuple[PackedCall, ...]:
    """Encode calls for whole prompts of these lengths in tokens, none above the largest rung."""
    left = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    calls = []
    while left:
        tokens_bucket = round_up(lengths[left[0]], buckets.encode_tokens)
        alike = sum(round_up(lengths[index], buckets.encode_tokens) == tokens_bucket for index in left)
        rows_bucket = _rows(alike, buckets.encode_rows)
        calls.append(PackedCall(tuple(left[:rows_bucket]), rows_bucket, tokens_bucket))
        left = left[rows_bucket:]
    return tuple(calls)


def _rows(wanted: int, ladder: tuple[int, ...]) -> int:
    """The rung that `wanted` rows fill at least by half, else the one below; the last rung where more are wanted."""
    above = bisect.bisect_left(ladder, wanted)
    if above == len(ladder):
        return ladder[-1]
    return ladder[above - 1] if above > 0 and 2 * wanted < ladder[above] else ladder[above]
