"""How many requests each policy wants before a phase, and how many iterations the phase has.

The rules of `exegpt_jax.runner.policies`, word for word, for the simulation (a test holds the two together), and the
fixed B_E that the closed form is about. None is told how long an answer will be.
"""

from __future__ import annotations

import dataclasses

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


def wish(schedule: Schedule, waiting: int, held: int, corrected: bool) -> Wish:
    """The next phase of a policy that works in phases.

    Args:
      schedule: its policy is rra, static, dsi or iteration.
      waiting: requests that wait.
      held: rows that the runner believes alive.
      corrected: rra: hold the planned decode batch, between half of B_E and twice as many.
    """
    if schedule.policy == "iteration":
        return Wish(waiting, 1)
    if schedule.policy in ("static", "dsi"):
        return Wish(0 if held else min(schedule.encode_batch, waiting), schedule.decode_iterations, compact=False)
    return Wish(
        min(corrected_batch(schedule, held) if corrected else schedule.encode_batch, waiting),
        schedule.decode_iterations,
    )


def corrected_batch(schedule: Schedule, held: int) -> int:
    """B_E that leads back to the planned decode batch: after short answers more, after long ones fewer."""
    most, least = 2 * schedule.encode_batch, -(-schedule.encode_batch // 2)
    return min(max(schedule.decode_batch - held, least), most)
