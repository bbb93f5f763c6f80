"""Following the traffic: what each phase showed becomes an estimate, the estimate a decision, drift a new plan.

    rows of a phase -> estimate -> keep | adjust the schedule at once
    its seconds -> pace            | beyond the margins: look again at what comes from now on, and if it stands:
                                     plan again (another process) -> compile (a thread that never executes) -> swap

The Runner's thread calls everything here but the work of that one thread, never waits for it, and swaps at a phase
boundary. Every decision is kept with its numbers and logged as one line, `replan {json}`.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from exegpt_jax.engine.api import Executor
from exegpt_jax.runner.adapt import LEAST_REQUESTS, Decision, Means, controls, decide, planned_means
from exegpt_jax.runner.delivery import Outcome
from exegpt_jax.runner.estimate import Estimate, FirstToken, Seen, estimated, no_tables, observed
from exegpt_jax.runner.next_plan import NextPlan, Replan, Successor
from exegpt_jax.runner.paces import Paces, margin_used
from exegpt_jax.runner.records import Event, Number, Record, numbers_of
from exegpt_jax.runner.rows import Row
from exegpt_jax.runner.traffic import MOST_ARRIVALS, Arrivals, lengths_now, requests_now
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

_LOG = logging.getLogger(__name__)

# Rows that end between two looks at the estimate.
_LOOK_EVERY = 16
# Rows, faded, that must end after a drift beyond the margins before a plan is asked for: what ran before is forgotten.
# The mean is then known to about 3%, less than most margins; half as many had plans made for what was not true.
SETTLE = 256
# Means that differ by less are those that no plan was found for.
_SAME = 0.1
_MOST_RECORDS = 10_000
_PHASES_KEPT = 256


class Follower:
    """Estimate, decisions and the plan that is to come.

    Args:
      plan: in force.
      replan: None: drift beyond the margins is met with what the plan's programs can do.
      first_token: who emits it (`solver.facts.model_spec`).

    Attributes:
      records: decisions, the oldest fall out; any thread may copy them.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        replan: Replan | None = None,
        first_token: FirstToken = "encode",
    ) -> None:
        self.records: collections.deque[Record] = collections.deque(maxlen=_MOST_RECORDS)
        self._replan, self._first_token = replan, first_token
        self._tables = no_tables(plan.cache_tokens, plan.max_prompt_tokens)
        self._arrivals: Arrivals = collections.deque(maxlen=MOST_ARRIVALS)
        self._unlooked = 0
        self._settling = False
        # What the last plan was asked for; and the same, where none came of it.
        self._asked = Means()
        self._refused: Means | None = None
        self._said = ""
        # Seconds of the last phases, and the longest while something is prepared.
        self._turns: collections.deque[float] = collections.deque(maxlen=_PHASES_KEPT)
        self._usual_s = self._worst_s = 0.0
        self._asked_s = 0.0
        self._paces = Paces()
        self._begin(plan)
        self._lock = threading.Lock()
        # Guarded by the lock. Somebody asks for a plan: under this bound on latency, or (None) under those that stand.
        self._wish: tuple[float | None] | None = None
        self._wished = False
        self.successor: Successor | None = None
        self.attach(time.monotonic, lambda: None)

    def attach(self, clock: Callable[[], float], on_answer: Callable[[], None]) -> None:
        """The Runner's clock, and whom to wake when a plan is ready; called from any thread."""
        self._clock, self._on_answer = clock, on_answer
        self._next = None if self._replan is None else NextPlan(self._replan, clock, on_answer)

    def _begin(self, plan: Plan) -> None:
        self._plan, self._schedule, self._means = plan, plan.schedule, planned_means(plan)

    @property
    def busy(self) -> bool:
        """A plan is being made or compiled."""
        return self._next is not None and self._next.busy

    def want_plan(self, latency_s: float | None = None) -> None:
        """Asks for a plan for what has been seen; from any thread. What comes of it stands in `records`.

        Args:
          latency_s: to be the bound on latency from then on; None: the bounds stand.

        Raises:
          ValueError: no plan is made here.
        """
        if self._replan is None:
            raise ValueError("replan: within, so no other plan is made; start the server with --replan=auto")
        with self._lock:
            self._wish = (latency_s,)
        self._on_answer()

    # What the Runner tells.

    def saw(self, outcome: Outcome, rows: Mapping[str, Row]) -> None:
        """Tokens of one part of a phase; `rows` by request, before those that ended are forgotten.

        A prompt counts with the first token behind it, whichever part of a phase that comes from.
        """
        grown = [(rows[event.id], len(event.token_ids)) for event in outcome.events]
        ended = {row.number for row, _, _ in outcome.ended}
        fresh = [row for row, tokens in grown if row.generated - tokens == len(row.request.generated_ids)]
        after = np.array([row.generated for row, _ in grown], np.int64)
        seen = Seen(
            before=after - np.array([tokens for _, tokens in grown], np.int64),
            after=after,
            ended=np.array([row.number in ended for row, _ in grown], bool),
            prompts=np.array([len(row.request.prompt_ids) for row in fresh], np.int64),
        )
        self._tables = observed(self._tables, seen)
        self._arrivals.extend((row.arrival_s, len(row.request.prompt_ids)) for row in fresh)
        self._unlooked += int(np.count_nonzero(seen.ended))

    def phase_took(self, turn_s: float, predicted_s: float | None = None) -> None:
        """A phase is over; None where nothing was predicted of it."""
        self._turns.append(turn_s)
        self._worst_s = max(self._worst_s, turn_s)
        if not self.busy:
            # Planning and compiling take of the devices what a plan cannot count on.
            self._paces.took(turn_s, predicted_s)

    # What the Runner asks.

    def at_boundary(self, phase: int, executor: Executor) -> Schedule | None:
        """The schedule to change to, or None; `successor` is set once there is one."""
        self._take_answer(phase)
        self._take_wish(phase, executor)
        if self._unlooked < _LOOK_EVERY:
            return None
        self._unlooked = 0
        estimate = estimated(self._tables, self._first_token)
        decision = self._with_pace(decide(self._plan, self._schedule, self._means, estimate))
        if decision.kind == "beyond":
            assert estimate is not None
            self._beyond(phase, decision, estimate, executor)
        else:
            # What is looked at again is known when enough of it has ended.
            if decision.requests >= SETTLE:
                self._settling = False
            if decision.kind == "adjust" or decision.reason != self._said:
                self._record(phase, decision.kind, numbers_of(decision))
            self._said = decision.reason
        if decision.kind == "keep" or controls(decision.schedule) == controls(self._schedule):
            return None
        self._schedule, self._means = decision.schedule, decision.means
        return decision.schedule

    def swapped(self, phase: int, carried: int, held_s: float, took_s: float) -> None:
        """The successor has taken over.

        Args:
          phase: that it begins with.
          carried: rows that stayed.
          held_s: time in which nobody was admitted.
          took_s: of the swap itself.
        """
        assert self.successor is not None
        successor, self.successor = self.successor, None
        numbers: dict[str, Number] = {
            "plan": successor.plan.digest[:12], "carried": carried, "held_s": held_s, "took_s": took_s,
            "since_asked_s": self._clock() - self._asked_s, "compiled": successor.compiled,
            "usual_phase_s": self._usual_s, "worst_phase_s": self._worst_s,
        }  # fmt: skip
        self._begin(successor.plan)
        self._means = dataclasses.replace(self._means, pace=self._asked.pace)
        if self._replan is not None:
            self._replan.swapped(phase, successor.plan)
        self._record(phase, "swap", numbers)

    def swap_failed(self, phase: int, error: Exception) -> None:
        """The plan in force stays so."""
        self.successor, self._refused = None, self._asked
        self._record(phase, "swap failed", {"error": f"{type(error).__name__}: {error}"})

    def stop(self) -> None:
        """Nothing that is still planned or compiled will be used."""
        self._on_answer = lambda: None
        if self._next is not None:
            self._next.stop()

    # Beyond the margins.

    def _beyond(self, phase: int, decision: Decision, estimate: Estimate, executor: Executor) -> None:
        if self._said != "beyond" or controls(decision.schedule) != controls(self._schedule):
            self._record(phase, "beyond", numbers_of(decision))
        self._said = "beyond"
        if self._next is None or self._next.busy or self.successor is not None or self._known(decision):
            return
        if not self._settling:
            # What is asked for is a plan for the traffic to come, not for a mixture with that of before.
            self._settling = True
            self._tables = no_tables(self._plan.cache_tokens, self._plan.max_prompt_tokens)
            return
        if estimate.requests < SETTLE:
            return
        self._settling = False
        self._ask(phase, estimate, decision, executor, self._plan)

    def _known(self, decision: Decision) -> bool:
        """No plan was found for about these lengths."""
        if self._refused is None:
            return False
        now, before = dataclasses.astuple(self._wanted(decision)), dataclasses.astuple(self._refused)
        return max(abs(one / other - 1) for one, other in zip(now, before, strict=True)) <= _SAME

    def _with_pace(self, decision: Decision) -> Decision:
        """The decision, beyond the margins also where the devices are."""
        pace, margins = self._paces.now(), self._plan.margins
        decision = dataclasses.replace(decision, pace=pace)
        if pace is None or margins is None or decision.kind == "beyond" or decision.requests < LEAST_REQUESTS:
            return decision
        used = margin_used(margins, pace, self._means.pace)
        if used <= 1:
            return decision
        reason = f"phases take {pace:.2f} times what the profile says, planned for was {self._means.pace:.2f}"
        return dataclasses.replace(decision, kind="beyond", margin_used=used, reason=reason)

    def _wanted(self, decision: Decision) -> Means:
        """What a plan that is asked for now is for."""
        return dataclasses.replace(decision.means, pace=decision.pace or self._means.pace)

    def _take_wish(self, phase: int, executor: Executor) -> None:
        """What was asked for, unless a plan is on its way: then after that."""
        if self._wish is None or self.busy or self.successor is not None:
            return
        with self._lock:
            wish, self._wish = self._wish, None
        estimate = estimated(self._tables, self._first_token)
        if estimate is None or estimate.requests < _LOOK_EVERY:
            self._record(
                phase, "no plan", {"error": "too few requests have ended to know the traffic; ask again later"}
            )
            return
        plan, latency_s = self._plan, wish[0]
        if latency_s is not None and plan.bounds is not None:
            plan = dataclasses.replace(plan, bounds=dataclasses.replace(plan.bounds, latency_s=latency_s))
        self._settling = False
        decision = self._with_pace(decide(plan, self._schedule, self._means, estimate))
        self._ask(phase, estimate, decision, executor, plan)
        self._wished = True

    def _ask(self, phase: int, estimate: Estimate, decision: Decision, executor: Executor, plan: Plan) -> None:
        """Begins to plan for the estimate under the bounds of `plan`."""
        assert self._next is not None
        bounds, wanted = plan.bounds, self._wanted(decision)
        if bounds is not None and bounds.bound_from == "arrival":
            workload = requests_now(estimate, self._arrivals, plan.cache_tokens, wanted.pace)
        else:
            workload = lengths_now(estimate, plan.cache_tokens)
        self._asked, self._asked_s, self._wished = wanted, self._clock(), False
        self._usual_s, self._worst_s = statistics.median(self._turns) if self._turns else 0.0, 0.0
        self._record(phase, "ask", numbers_of(decision))
        self._next.ask(workload, plan, executor, wanted.pace)

    def _take_answer(self, phase: int) -> None:
        answer = None if self._next is None else self._next.take()
        if answer is None:
            return
        took_s, found = self._clock() - self._asked_s, answer.found
        if isinstance(found, str):
            # What somebody wished for says nothing of what drift would get.
            self._refused = self._refused if self._wished else self._asked
            self._record(phase, "no plan", {"error": found, "seconds": took_s})
            return
        self.successor, self._refused = found, None
        schedule = found.plan.schedule
        numbers: dict[str, Number] = {
            "plan": found.plan.digest[:12], "policy": schedule.policy, "encode_batch": schedule.encode_batch,
            "decode_iterations": schedule.decode_iterations, "decode_batch": schedule.decode_batch,
            "most_rows": schedule.most_rows, "max_rows": schedule.max_rows, "stages": len(schedule.stages),
            "carries": int(found.carries),
            "planned_s": answer.planned_s, "compiled_s": took_s - answer.planned_s,
        }  # fmt: skip
        self._record(phase, "planned", numbers)

    def _record(self, phase: int, event: Event, numbers: Mapping[str, Number]) -> None:
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in numbers.items()}
        record = Record(self._clock(), phase, event, rounded)
        self.records.append(record)
        _LOG.info("replan %s", record.line())
