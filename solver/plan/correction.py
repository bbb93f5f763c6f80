"""The correction of B_E at run time: how many waiting requests the next encode phase takes.

Runner and event simulation call the same functions, so what is simulated is what runs. Requests are taken in order of
arrival; none is passed over, and no output length is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver.plan.schedule import Schedule


def most_encoded(schedule: Schedule) -> int:
    """Requests that one encode phase takes at most, and so how far into the queue a policy looks."""
    return 2 * schedule.encode_batch


def corrected_batch(
    schedule: Schedule, live: int, prompt_tokens: Sequence[int] | NDArray[np.int64], deferrals: int = 0
) -> int:
    """B_E that leads back to the planned decode batch: after short answers more, after long ones fewer.

    As planned where it strays by no more than the plan's calm rows; between half of B_E and twice as many. The plan's
    bands come before that, the later of these before the earlier: a phase's tokens reach the low end of their band,
    they do not pass the high end (a prompt longer than that goes alone), rows do not pass theirs; but after
    `most_deferrals` phases without anybody the first in the queue goes. So whoever has n requests ahead waits at most
    (n + 1)(most_deferrals + 1) phases while rows are free.

    Args:
      schedule: in force.
      live: rows that decode.
      prompt_tokens: of those who wait, in order of arrival, `most_encoded` of them if there are as many; empty: the
        band of tokens is left out.
      deferrals: phases in a row in which nobody was taken though somebody waited and a row was free.
    """
    bands = schedule.bands
    least, most = -(-schedule.encode_batch // 2), most_encoded(schedule)
    if bands is not None and len(prompt_tokens):
        tokens = np.cumsum(prompt_tokens[:most])
        least = max(least, int(np.searchsorted(tokens, bands.encode_tokens_low)) + 1)
        most = min(most, max(1, int(np.searchsorted(tokens, bands.encode_tokens_high, side="right"))))
    wanted = schedule.decode_batch - live
    if bands is not None and abs(wanted - schedule.encode_batch) <= bands.calm_rows:
        wanted = schedule.encode_batch
    batch = min(max(wanted, least), most)
    if bands is None:
        return batch
    overdue = 1 if deferrals >= bands.most_deferrals else 0
    return min(batch, max(bands.decode_rows_high - live, overdue))


def deferrals_after(deferrals: int, waiting: int, free: int, admitted: int) -> int:
    """The count for the next phase: 0 once somebody was taken or nobody waits, one more where a row was free."""
    if admitted or not waiting:
        return 0
    return deferrals + (1 if free > 0 else 0)
