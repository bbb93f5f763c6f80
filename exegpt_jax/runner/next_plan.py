"""The plan to come: made and compiled on a thread of its own, for which the Runner never waits."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from exegpt_jax.engine.api import Executor
from solver.facts.workload import Workload
from solver.plan.at_pace import at_pace, profile_bounds
from solver.plan.plan import Plan

_LOG = logging.getLogger(__name__)


class Successor(Protocol):
    """What runs the next plan: compiled, waiting, and not yet in possession of the cache."""

    @property
    def plan(self) -> Plan: ...

    @property
    def carries(self) -> bool:
        """Rows stay where they are; else the devices must be drained first."""
        ...

    @property
    def compiled(self) -> int:
        """Programs that were compiled for it, in the background."""
        ...

    def take_over(self, executor: Executor) -> Executor:
        """The executor that goes on from the one in force. Called from the Runner's thread at a phase boundary.

        Raises whatever a device may raise; the one in force can then go on, after a `reset` if it was drained.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Replan:
    """How to come by another plan; both are called from a thread of their own.

    Attributes:
      plan_again: the best plan for a workload under the bounds of the plan in force, whose rows hold as many tokens.
        Raises ValueError with one line where there is none.
      prepare: compiles a plan beside the executor in force, which it must not use but may look at.
      stop: ends a `plan_again` under way.
      swapped: told the phase from which on a plan runs, and the plan.
    """

    plan_again: Callable[[Workload, Plan], Plan]
    prepare: Callable[[Executor, Plan], Successor]
    stop: Callable[[], None] = lambda: None
    swapped: Callable[[int, Plan], None] = lambda phase, plan: None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
      found: what runs the plan, or in one line why there is none.
      planned_s: what planning took, where a plan was found.
    """

    found: Successor | str
    planned_s: float


class NextPlan:
    """One plan at a time.

    Args:
      replan: how to come by one.
      clock: seconds.
      on_answer: called from the thread when it is done.
    """

    def __init__(self, replan: Replan, clock: Callable[[], float], on_answer: Callable[[], None]) -> None:
        self._replan, self._clock, self._on_answer = replan, clock, on_answer
        self._thread: threading.Thread | None = None
        # Set by the thread, once; taken by who asked.
        self._answer: Answer | None = None

    @property
    def busy(self) -> bool:
        """A plan is being made or compiled, or what came of it has not been taken yet."""
        return self._thread is not None

    def ask(self, workload: Workload, plan: Plan, executor: Executor, pace: float = 1.0) -> None:
        """Begins to plan for the workload under the bounds of `plan`, on devices of this pace; the workload's arrivals
        are in the profiles' time (`solver.plan.at_pace`).
        """
        arguments = workload, plan, executor, pace
        self._thread = threading.Thread(target=self._work, args=arguments, name="replan", daemon=True)
        self._thread.start()

    def take(self) -> Answer | None:
        """The answer, if there is one: once."""
        answer = self._answer
        if answer is not None:
            self._answer = self._thread = None
        return answer

    def stop(self) -> None:
        """What is under way will not be used."""
        self._on_answer = lambda: None
        if self.busy:
            self._replan.stop()

    def _work(self, workload: Workload, plan: Plan, executor: Executor, pace: float) -> None:
        found: Successor | str
        begun_s, planned_s = self._clock(), 0.0
        try:
            new = at_pace(self._replan.plan_again(workload, _in_profile_time(plan, pace)), plan.bounds, pace)
            for name in ("cache_tokens", "max_prompt_tokens"):
                if getattr(new, name) < getattr(plan, name):
                    raise ValueError(f"{name}: {getattr(new, name)} is less than what requests were promised")
            planned_s = self._clock() - begun_s
            found = self._replan.prepare(executor, new)
        # A plan that does not come about must not end the service; whatever it was is in the record.
        except Exception as error:
            _LOG.debug("no plan", exc_info=True)
            found = f"{type(error).__name__}: {error}"
        self._answer = Answer(found, planned_s)
        self._on_answer()


def _in_profile_time(plan: Plan, pace: float) -> Plan:
    if pace == 1 or plan.bounds is None:
        return plan
    return dataclasses.replace(plan, bounds=profile_bounds(plan.bounds, pace))
