"""How many requests each policy wants before a phase, and how many iterations the phase has.

The rules of `exegpt_jax.runner.policies` for the simulation (a test holds the two together; the correction of B_E is
one function), and the fixed B_E that the closed form is about. None is told how long an answer will be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver.plan.correction import corrected_batch
from solver.plan.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a policy would do if everything fitted.

    Attributes:
      admit: requests to take, at most as many as wait.
      iterations: of the decode phase.
      compact: ended rows may leave the batch before all have ended.
    """

    admit: int
    iterations: int
    compact: bool = True


def wish(
    schedule: Schedule,
    waiting: int,
    held: int,
    corrected: bool,
    prompt_tokens: Sequence[int] | NDArray[np.int64] = (),
    deferrals: int = 0,
) -> Wish:
    """The next phase of a policy that works in phases.

    Args:
      schedule: its policy is rra, static, dsi or iteration.
      waiting: requests that wait.
      held: rows that the runner believes alive.
      corrected: rra: B_E follows the planned decode batch within the plan's bands.
      prompt_tokens, deferrals: as `corrected_batch` has them.
    """
    if schedule.policy == "iteration":
        return Wish(waiting, 1)
    if schedule.policy in ("static", "dsi"):
        return Wish(0 if held else min(schedule.encode_batch, waiting), schedule.decode_iterations, compact=False)
    return Wish(
        min(corrected_batch(schedule, held, prompt_tokens, deferrals) if corrected else schedule.encode_batch, waiting),
        schedule.decode_iterations,
    )
