"""Whether re-packing rows into a smaller compiled bucket pays: iterations saved against rows moved, by the profile.

A move reads and writes whole slots, `ROWS_PER_MOVE` at a time. What that takes is not in a profile; but an iteration of
as many rows that attends to whole slots reads all of them once, and more besides, so two such iterations are no less.
Only the phase at hand is counted. Where nothing is predicted, fewer rows are always taken to be worth it.
"""

from __future__ import annotations

import dataclasses

from solver.plan.buckets import attended_tokens, round_up
from solver.plan.micro_batches import decode_parts, part_rows
from solver.plan.plan import Plan
from solver.plan.timeline import Predictor, TimelineEntry

ROWS_PER_MOVE = 8
_ITERATIONS_PER_MOVE = 2


@dataclasses.dataclass(frozen=True)
class Repacking:
    """A choice before a phase.

    Attributes:
      phase: its number.
      rows, smaller: rungs of rows without and with it.
      moves: rows to be moved.
      iterations: of the phase.
      reach_tokens: positions of the longest row by its end.
    """

    phase: int
    rows: int
    smaller: int
    moves: int
    iterations: int
    reach_tokens: int


def pays(choice: Repacking, plan: Plan, predictor: Predictor | None) -> bool:
    """Whether the phase ends sooner with it."""
    if predictor is None:
        return True
    before, after = (
        predictor.phase_s(_entries(choice, plan, rows, choice.iterations)) for rows in (choice.rows, choice.smaller)
    )
    ladder = plan.buckets.decode_rows
    moved = round_up(min(ROWS_PER_MOVE, ladder[-1]), ladder)
    one = [
        # Not a phase's first, which carries what a phase costs beside its iterations.
        dataclasses.replace(entry, iteration=1, rows_bucket=moved, tokens_bucket=plan.cache_tokens, iterations=1)
        for entry in _entries(choice, plan, moved, 1)
        if entry.micro_batch == 0
    ]
    spent = [predictor.entry_s(entry) for entry in one]
    if before is None or after is None or None in spent:
        return True
    calls = -(-choice.moves // ROWS_PER_MOVE)
    return before - after > calls * _ITERATIONS_PER_MOVE * sum(each for each in spent if each is not None)


def _entries(choice: Repacking, plan: Plan, rows: int, iterations: int) -> list[TimelineEntry]:
    """The decode part of the phase as it would stand in a Timeline."""
    parts, buckets = decode_parts(plan.schedule), plan.buckets
    attended = attended_tokens(choice.reach_tokens, iterations, rows == buckets.decode_rows[-1], buckets.cache_tokens)
    each = part_rows(rows, parts)
    return [
        TimelineEntry(
            phase=choice.phase,
            kind="decode",
            stage=stage,
            dispatched_s=0.0,
            ready_s=0.0,
            rows=each,
            tokens=each * iterations,
            iterations=iterations,
            rows_bucket=each,
            tokens_bucket=attended,
            micro_batch=part,
        )
        for stage, spec in enumerate(plan.schedule.stages)
        if spec.role != "encode"
        for part in range(parts)
    ]
