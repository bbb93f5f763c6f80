"""The Runner: the one loop that executes a Plan.

    take what was asked, cancelled and overdue -> ask the policy -> release, compact, encode and insert, decode N_D
    times -> hand over the first tokens -> hand over the block of decoded tokens -> again

It owns the queue, sends one frozen `PhaseCommand` per phase to an Executor, and hands one list of events to who asked
after each part. Everything but `submit`, `cancel`, `drain`, `stop` and `stats` runs on its one thread.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from exegpt_jax.engine.api import ApartExecutor, Executor, PhaseCommand
from exegpt_jax.runner import delivery
from exegpt_jax.runner.apart import ApartBatch, batch_of
from exegpt_jax.runner.batch import Queue
from exegpt_jax.runner.entries import decode_entry, encode_entry, stage_entries
from exegpt_jax.runner.events import Event, Reason
from exegpt_jax.runner.figures import Figures
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.intake import Intake
from exegpt_jax.runner.limits import check
from exegpt_jax.runner.next_plan import Successor
from exegpt_jax.runner.request import Request
from exegpt_jax.runner.rows import Row
from exegpt_jax.runner.turn import Desk, take_turn
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from solver.plan.timeline import Predictor, Timeline, TimelineEntry
from solver.plan.under_way import works_apart

_LOG = logging.getLogger(__name__)

Work = Callable[[], tuple[float, list[TimelineEntry]]]
"""Runs a phase; its seconds, and its entries."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counts since the start, and what is there now.

    Attributes:
      waiting, running: requests in the queue, and admitted ones.
      phases, failed_phases: run so far.
      finished: requests that got their last event.
      generated_tokens: output tokens handed over.
      live_bytes: cache bytes that requests hold, as the executor counts them.
      compilations: programs compiled since the executor was warm; more than none is a fault.
      broken: the executor could not be reset after a failure; nothing runs any more.
    """

    waiting: int
    running: int
    phases: int
    failed_phases: int
    finished: int
    generated_tokens: int
    live_bytes: int
    compilations: int
    broken: bool


class Runner:
    """Runs one Plan on one Executor.

    Args:
      plan: what to run.
      executor: warm; used from this object's thread alone.
      on_events: called with each list of events, on that thread; must not block. What it raises is logged.
      clock: seconds; deadlines and arrivals use the same.
      predictor: what the plan expects of each phase, for whoever reads the timeline.
      follower: follows the traffic, with other schedules and other plans; None: the plan as it stands, for good.

    Attributes:
      plan: in force.
      timeline: what the phases did.
      figures: how long requests took.
    """

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        on_events: Callable[[list[Event]], None],
        clock: Callable[[], float] = time.monotonic,
        predictor: Predictor | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.plan = plan
        self.follower = follower
        self.timeline = Timeline(predictor=predictor)
        self.figures = Figures()
        self._executor = executor
        self._on_events = on_events
        self._clock = clock
        # Shared with other threads.
        self._intake = Intake()
        self._thread: threading.Thread | None = None
        # The loop's own.
        self._waiting: Queue = Queue()
        self._timed: dict[int, Row] = {}
        self._batch = batch_of(plan)
        self._batch.predictor = predictor
        self._phases = self._failed = self._finished = self._tokens = 0
        self._broken = False
        # When the batch began to hold for another plan.
        self._holding_s: float | None = None
        if follower is not None:
            follower.attach(clock, self._intake.nudge)

    # Who asks.

    def submit(self, request: Request) -> None:
        """Queues a request. Raises ValueError with one line where it can never run."""
        check(request, self.plan)
        arrival_s = self._clock() if request.arrival_s is None else request.arrival_s
        self._intake.submit(request, arrival_s)

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next phase boundary; unknown ids are ignored, since it may have ended just now."""
        self._intake.cancel(request_id)

    def drain(self, timeout_s: float) -> bool:
        """Waits until every request has its last event; False if the time ran out."""
        return self._intake.drain(timeout_s)

    def start(self) -> None:
        """Begins to run phases on a thread of its own."""
        # What loading and compiling left behind stays for good; looking through it again and again costs latency.
        gc.collect()
        gc.freeze()
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the phase under way; what is left gets an abort event."""
        if self.follower is not None:
            self.follower.stop()
        self._intake.stop()
        if self._thread is None:
            self._leave()
        else:
            self._thread.join()
            gc.unfreeze()

    def stats(self) -> Stats:
        """A snapshot from any thread; counts of a phase under way may be torn between fields."""
        return Stats(
            waiting=len(self._waiting) + self._intake.arrived,
            running=len(self._batch.slots.rows) + len(self._batch.encoding),
            phases=self._phases,
            failed_phases=self._failed,
            finished=self._finished,
            generated_tokens=self._tokens,
            live_bytes=self._executor.live_bytes(),
            compilations=self._executor.compilations(),
            broken=self._broken,
        )

    @property
    def schedule(self) -> Schedule:
        """In force: the plan's, or its neighbour that the traffic asks for."""
        return self._batch.schedule

    def rows(self) -> list[Row]:
        """Requests that have not ended; for whoever looks on, from any thread."""
        return self._intake.rows()

    # The loop.

    def _run(self) -> None:
        while not self._intake.stopping:
            if not self.run_phase():
                self._intake.wait()
        self._leave()

    def _leave(self) -> None:
        self._end_everybody("abort", "the server is stopping")
        self.run_phase()  # the devices hear whose rows are free

    def run_phase(self) -> bool:
        """Runs one phase, unless there is nothing to do. Not to be called while the thread runs."""
        begun_s = self._clock()
        self._take_news()
        if self.follower is not None:
            self._follow(self.follower)
        work = self._next_work(begun_s)
        if work is None:
            return False
        try:
            turn_s, entries = work()
        # Whatever a program or its device may raise costs the requests on it, never the loop.
        except Exception as error:
            self._recover(error)
        else:
            if self.follower is not None:
                self.follower.phase_took(turn_s, self.timeline.predicted_s(entries) if entries else None)
        return True

    def _next_work(self, begun_s: float) -> Work | None:
        """The next phase, or the next turn of a plan whose sides are apart; None if nothing is to do."""
        batch = self._batch
        if isinstance(batch, ApartBatch):
            executor = cast(ApartExecutor, self._executor)
            desk = Desk(executor, self._clock, self._phase_numbers(), self.timeline, self._deliver)
            return None if batch.idle(self._waiting) else lambda: self._take_turn(batch, desk, begun_s)
        command = batch.next_command(self._phases, self._waiting, begun_s)
        if command is None:
            return None
        self._phases += 1
        return lambda: self._execute(command, begun_s)

    def _phase_numbers(self) -> Iterator[int]:
        while True:
            self._phases += 1
            yield self._phases - 1

    def _follow(self, follower: Follower) -> None:
        """Another schedule, or another plan, if the traffic asks for it."""
        schedule = follower.at_boundary(self._phases, self._executor)
        if schedule is not None:
            self._batch.schedule = schedule
        successor = follower.successor
        if successor is None:
            return
        if self._batch.can_give_way(successor.plan.schedule.most_rows, carried=successor.carries):
            self._swap(follower, successor)
        else:
            self._batch.holding = True
            self._holding_s = self._holding_s or self._clock()

    def _swap(self, follower: Follower, successor: Successor) -> None:
        """The successor takes over, between two phases. Nobody is lost: where it fails, the plan in force goes on."""
        begun_s, plan = self._clock(), successor.plan
        carried = len(self._batch.rows)
        held_s = 0.0 if self._holding_s is None else begun_s - self._holding_s
        self._holding_s, self._batch.holding = None, False
        command = self._batch.settle(self._phases, plan.schedule.most_rows)
        if command is not None:
            self._phases += 1
            try:
                self._executor.dispatch(command)
            # As in any phase.
            except Exception as error:
                follower.swap_failed(self._phases, error)
                self._recover(error)
                return
        try:
            executor = successor.take_over(self._executor)
        # A device that cannot hold the new plan still holds the old one.
        except Exception as error:
            follower.swap_failed(self._phases, error)
            if not successor.carries:
                self._recover(error)
            return
        self._executor, self.plan = executor, plan
        if isinstance(self._batch, ApartBatch) == works_apart(plan.schedule):
            self._batch.go_on_under(plan)
        else:
            # Drained: sides that come apart, or together, carry no rows over.
            predictor, self._batch = self._batch.predictor, batch_of(plan)
            self._batch.predictor = predictor
        follower.swapped(self._phases, carried, held_s, self._clock() - begun_s)

    def _take_news(self) -> None:
        """New requests, cancelled ones, and those whose deadline has passed."""
        arrived, cancelled = self._intake.take()
        for row in arrived:
            self._waiting[row.number] = row
            if row.request.deadline_s is not None:
                self._timed[row.number] = row
        self._end(cancelled, "abort", "cancelled")
        if self._timed:
            now_s = self._clock()
            overdue = [row for row in self._timed.values() if (row.request.deadline_s or 0.0) <= now_s]
            self._end(overdue, "deadline", "the deadline passed")

    def _take_turn(self, batch: ApartBatch, desk: Desk, begun_s: float) -> tuple[float, list[TimelineEntry]]:
        take_turn(batch, self._waiting, desk)
        # What was noted belongs to phases of either side, which a turn is none of.
        return self._clock() - begun_s, []

    def _execute(self, command: PhaseCommand, begun_s: float) -> tuple[float, list[TimelineEntry]]:
        dispatched_s, noted = self._clock(), list[TimelineEntry]()
        pending = self._executor.dispatch(command)
        if command.encode:
            results = pending.encoded()
            ready_s = self._clock()
            outcome = delivery.first_tokens(command.encode, results, self._batch.slots.rows, ready_s)
            entries = stage_entries(command.phase, "encode", [work for result in results for work in result.work])
            noted += self._noted(entries or [encode_entry(command.phase, command.encode, dispatched_s, ready_s)])
            self._deliver(outcome, ready_s)
        if command.decode is not None and (result := pending.decoded()) is not None:
            ready_s = self._clock()
            outcome = delivery.decoded_tokens(result, self._batch.slots.rows, ready_s)
            entries = stage_entries(command.phase, "decode", result.work)
            entries = entries or [decode_entry(command.phase, command.decode, outcome, dispatched_s, ready_s)]
            noted += self._noted(entries)
            self._deliver(outcome, ready_s)
        turn_s = self._clock() - begun_s
        self.timeline.close(command.phase, turn_s)
        return turn_s, noted

    def _noted(self, entries: list[TimelineEntry]) -> list[TimelineEntry]:
        for entry in entries:
            self.timeline.add(entry)
        return entries

    def _deliver(self, outcome: delivery.Outcome, now_s: float) -> None:
        self._tokens += outcome.tokens
        if self.follower is not None:
            self.follower.saw(outcome, self._intake.live)
        events: list[Event] = list(outcome.events)
        finished = [delivery.finished(row, reason, token, "", now_s) for row, reason, token in outcome.ended]
        self.figures.count(finished)
        events += finished
        self._close([row for row, _, _ in outcome.ended], events)

    def _recover(self, error: Exception) -> None:
        """Fails everybody who was on the devices and begins with an empty cache."""
        _LOG.exception("phase %d failed", self._phases - 1)
        self._failed += 1
        self._end(self._batch.rows, "error", f"{type(error).__name__}: {error}")
        self._batch.forget()
        try:
            self._executor.reset()
        # Without an engine nothing can be answered: say so to everybody instead of leaving them to wait.
        except Exception as fatal:
            _LOG.exception("the executor could not be reset")
            self._broken = True
            self._intake.stop()
            self._end_everybody("error", f"{type(fatal).__name__}: {fatal}")

    # Ends.

    def _end(self, rows: Iterable[Row], reason: Reason, detail: str) -> None:
        """Ends requests before their time, wherever they are."""
        now_s = self._clock()
        ended = list(rows)
        self._close(ended, [delivery.finished(row, reason, None, detail, now_s) for row in ended])

    def _end_everybody(self, reason: Reason, detail: str) -> None:
        self._take_news()
        self._end([*self._batch.rows, *self._waiting.values()], reason, detail)

    def _close(self, ended: list[Row], events: list[Event]) -> None:
        """Hands the events over and forgets the rows that ended with them."""
        for row in ended:
            self._batch.free(row)
            self._waiting.pop(row.number, None)
            self._timed.pop(row.number, None)
        if events:
            try:
                self._on_events(events)
            # A listener's fault must not cost the other requests theirs.
            except Exception:
                _LOG.exception("events were lost")
        if ended:
            self._finished += len(ended)
            self._intake.forget(ended)
