"""How far a phase may stray from the plan's average: prompt tokens encoded in it, rows that decode in it.

The bands hold what the plan's own fluctuation explains and no more. `solver.plan.correction` keeps phases within them;
what leaves them for long is drift, and for that there are margins and new plans.
"""

from __future__ import annotations

import dataclasses
import math

# Phases that the first in the queue stands back for the sake of a band, though a row is free.
MOST_DEFERRALS = 4
# Standard deviations on either side.
_DEVIATIONS = 3.0
# Of the way from the planned rows to those allocated, which is about three standard deviations of residents.
_CALM = 1 / 3


@dataclasses.dataclass(frozen=True)
class Bands:
    """What a phase is held within.

    Attributes:
      encode_tokens_low, encode_tokens_high: prompt tokens encoded in one phase, while enough requests wait.
      decode_rows_low, decode_rows_high: rows that decode when the phase starts.
      most_deferrals: phases that the first in the queue stands back at most while a row is free.
      calm_rows: B_E is not corrected for fewer rows too many or too few than these.
    """

    encode_tokens_low: int
    encode_tokens_high: int
    decode_rows_low: int
    decode_rows_high: int
    most_deferrals: int = MOST_DEFERRALS
    calm_rows: int = 0

    def __post_init__(self) -> None:
        for name in ("encode_tokens", "decode_rows"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if not 0 <= low <= high or high < 1:
                raise ValueError(f"bands.{name}: [{low}, {high}] is no range; give 0 <= low <= high, high at least 1")
        if self.most_deferrals < 0:
            raise ValueError(f"bands.most_deferrals: {self.most_deferrals} is negative; give 0 or more phases")
        if self.calm_rows < 0:
            raise ValueError(f"bands.calm_rows: {self.calm_rows} is negative; give 0 or more rows")


def planned_bands(
    encode_batch: int,
    decode_batch: int,
    max_rows: int,
    mean_input: float,
    mean_input2: float,
    longest_prompt: int,
) -> Bands:
    """Bands around the averages of a workload.

    Tokens of a phase are a sum of about B_E independent prompts, B_E itself moving as rows end: variance B_E E[I^2]
    (compound Poisson). Whole prompts in order of arrival can always meet a band as wide as the longest of them. Rows
    reach up to those allocated, which is the plan's quantile of residents, and as far down.

    Args:
      encode_batch, decode_batch, max_rows: B_E, B_D and the rows allocated.
      mean_input, mean_input2: E[I] and E[I^2], of prompt tokens.
      longest_prompt: tokens.
    """
    mean = encode_batch * mean_input
    spread = max(_DEVIATIONS * math.sqrt(encode_batch * mean_input2), longest_prompt / 2)
    low = max(0, math.floor(mean - spread))
    high = max(math.ceil(mean + spread), low + longest_prompt)
    return Bands(low, high, *_rows(decode_batch, max_rows), calm_rows=_calm(decode_batch, max_rows))


def unknown_bands(encode_batch: int, decode_batch: int, max_rows: int, longest_prompt: int) -> Bands:
    """Where nothing is known of the traffic: tokens of twice B_E of the longest prompts, and none at least. Rows that
    are allocated are then no quantile of residents, so no stray is calm."""
    return Bands(0, 2 * encode_batch * longest_prompt, *_rows(decode_batch, max_rows))


def _calm(decode_batch: int, max_rows: int) -> int:
    """A batch of encode calls as planned costs less than one that is larger by a few prompts: they make a call more."""
    return round(_CALM * (max_rows - decode_batch))


def _rows(decode_batch: int, max_rows: int) -> tuple[int, int]:
    return max(1, 2 * decode_batch - max_rows), max_rows
