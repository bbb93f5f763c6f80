"""With which phase a waiting request starts: the plan's own policy, played forward over rows that end as expected.

Phases begin at boundaries, numbered from the next one on. At each the rows that are done leave, and the policy of the
Runner (`exegpt_jax.runner.policies`, the same function) says how many of those who wait are taken.
"""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Iterable

from exegpt_jax.runner.policies import POLICIES, View, rra
from solver.plan.correction import deferrals_after
from solver.plan.schedule import Schedule
from solver.plan.under_way import works_apart

_MANY = 2**31


def iterations_of(schedule: Schedule) -> int:
    """Tokens that a row gains in a phase, as the front end sees phases: hand-over to hand-over."""
    by_one = schedule.policy in ("iteration", "chunked") or works_apart(schedule)
    return 1 if by_one else schedule.decode_iterations


def phases_of(schedule: Schedule, tokens: int, told: int = 0) -> int:
    """Phases that a row is resident for, of which it has had those for `told` tokens; 1 at least.

    The first token comes with the encode part of its phase, the others from N_D iterations a phase.
    """
    return max(1, math.ceil((tokens - max(told, 1)) / iterations_of(schedule)))


def admitted(schedule: Schedule, live: int, waiting: int, mean_prompt_tokens: float, deferrals: int = 0) -> int:
    """How many of those who wait the phase takes that begins with so many live rows."""
    free = schedule.most_rows - live
    decision = POLICIES.get(schedule.policy, rra)(schedule, View(waiting, 0, live, free, deferrals=deferrals))
    return max(0, min(decision.admit, _encodable(schedule, live, mean_prompt_tokens)))


def _encodable(schedule: Schedule, live: int, mean_prompt_tokens: float) -> int:
    """Requests whose prompts one phase encodes at most."""
    if schedule.policy == "chunked":
        return max(1, int((schedule.token_budget - live) / max(mean_prompt_tokens, 1.0)))
    if schedule.bands is None:
        return _MANY
    return max(1, int(schedule.bands.encode_tokens_high / max(mean_prompt_tokens, 1.0)))


class Starts:
    """Looks as far ahead as it is asked to, and remembers.

    Args:
      schedule: in force.
      ends: of each resident row, the boundary at which it leaves.
      residence: phases of those who wait, in the mean.
      mean_prompt_tokens: of theirs.
    """

    def __init__(self, schedule: Schedule, ends: Iterable[int], residence: int, mean_prompt_tokens: float) -> None:
        self._schedule, self._residence, self._mean_prompt_tokens = schedule, residence, mean_prompt_tokens
        self._leaving = collections.Counter(ends)
        self._live = sum(self._leaving.values())
        self._deferrals = 0
        # Of those who wait, how many have started with each boundary's phase.
        self._started: list[int] = []

    def boundary_of(self, ahead: int) -> int:
        """Of whoever has so many waiting before it."""
        while not self._started or self._started[-1] <= ahead:
            self._step()
        return bisect.bisect_right(self._started, ahead)

    def _step(self) -> None:
        boundary = len(self._started)
        self._live -= self._leaving.pop(boundary, 0)
        taken = admitted(self._schedule, self._live, _MANY, self._mean_prompt_tokens, self._deferrals)
        free = self._schedule.most_rows - self._live
        self._deferrals = deferrals_after(self._deferrals, _MANY, free, taken)
        self._leaving[boundary + self._residence] += taken
        self._live += taken
        self._started.append((self._started[-1] if self._started else 0) + taken)
