"""What each policy does in the next phase: how many requests to admit, how many decode iterations to run.

Pure functions of what the Runner sees. None is told how long an answer will be; `max_tokens` is a limit, not a length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from solver.plan.correction import corrected_batch
from solver.plan.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class View:
    """What a policy may know.

    Attributes:
      waiting: requests that wait.
      encoding: admitted requests whose prompt is not wholly encoded.
      live: rows that decode.
      free: slots that nobody holds or has been promised.
      prompt_tokens: of the first who wait, as far as any policy looks.
      deferrals: phases in a row in which nobody was admitted though somebody waited and a slot was free.
    """

    waiting: int
    encoding: int
    live: int
    free: int
    prompt_tokens: tuple[int, ...] = ()
    deferrals: int = 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """One phase.

    Attributes:
      admit: requests to take from the queue at most.
      iterations: decode iterations.
      prompt_tokens: the most prompt tokens to encode; None: every admitted prompt whole.
      compact: re-pack live rows where that reaches a smaller bucket.
    """

    admit: int
    iterations: int
    prompt_tokens: int | None = None
    compact: bool = True


def rra(schedule: Schedule, view: View) -> Decision:
    """B_E prompts, then N_D iterations, and again.

    B_E is corrected to hold the planned decode batch, within the plan's bands. A queue shorter than that is taken
    whole: nobody waits for company.
    """
    wanted = corrected_batch(schedule, view.live, view.prompt_tokens, view.deferrals)
    admit = min(wanted, view.waiting, view.free)
    return Decision(admit, schedule.decode_iterations)


def static(schedule: Schedule, view: View) -> Decision:
    """One batch of B_E at a time, decoded until its longest answer ends; no refill, no compaction."""
    admit = 0 if view.live else min(schedule.encode_batch, view.waiting, view.free)
    return Decision(admit, schedule.decode_iterations, compact=False)


def iteration(schedule: Schedule, view: View) -> Decision:
    """Before every single iteration, all waiting requests that fit."""
    return Decision(min(view.waiting, view.free), 1)


def chunked(schedule: Schedule, view: View) -> Decision:
    """Every iteration carries the decode rows and prompt tokens up to the token budget; one token at least moves on."""
    return Decision(min(view.waiting, view.free), 1, prompt_tokens=max(1, schedule.token_budget - view.live))


POLICIES: Mapping[str, Callable[[Schedule, View], Decision]] = {
    "rra": rra,
    "static": static,
    "iteration": iteration,
    "chunked": chunked,
}
