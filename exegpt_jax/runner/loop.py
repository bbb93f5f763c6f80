"""The Runner: the one loop that executes a Plan.

    take what was asked, cancelled and overdue -> ask the policy -> release, compact, encode and insert, decode N_D
    times -> hand over the first tokens -> hand over the block of decoded tokens -> again

It owns the queue and the rows, sends one frozen `PhaseCommand` per phase to an Executor, and hands one list of events
to who asked after each part. Everything but `submit`, `cancel`, `drain`, `stop` and `stats` runs on its one thread.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable

from exegpt_jax.engine.api import DecodeCall, EncodeCall, Executor, Pending, PhaseCommand
from exegpt_jax.runner import delivery
from exegpt_jax.runner.calls import encode_calls
from exegpt_jax.runner.events import Event, Reason
from exegpt_jax.runner.policies import POLICIES, Decision, View
from exegpt_jax.runner.request import Request
from exegpt_jax.runner.rows import Row, Slots
from solver.plan.buckets import round_up
from solver.plan.plan import Plan
from solver.plan.timeline import Timeline, TimelineEntry

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counts since the start, and what is there now.

    Attributes:
      waiting, running: requests in the queue, and admitted ones.
      phases, failed_phases: run so far.
      finished: requests that got their last event.
      generated_tokens: output tokens handed over.
      live_bytes: cache bytes that requests hold, as the executor counts them.
    """

    waiting: int
    running: int
    phases: int
    failed_phases: int
    finished: int
    generated_tokens: int
    live_bytes: int


class Runner:
    """Runs one Plan on one Executor.

    Args:
      plan: what to run.
      executor: warm; used from this object's thread alone.
      on_events: called with each list of events, on that thread; must not block and must not raise.
      clock: seconds; deadlines and arrivals use the same.
    """

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        on_events: Callable[[list[Event]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.timeline = Timeline()
        if plan.schedule.policy not in POLICIES:
            raise ValueError(
                f"policy: {plan.schedule.policy!r} is not executed yet; choose one of {', '.join(POLICIES)}"
            )
        self._policy = POLICIES[plan.schedule.policy]
        self._executor = executor
        self._on_events = on_events
        self._clock = clock
        self._numbers = itertools.count()
        # Shared with other threads, guarded by the condition.
        self._wake = threading.Condition()
        self._inbox: list[Row] = []
        self._cancelled: set[str] = set()
        self._ids: set[str] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None
        # The loop's own.
        self._waiting: collections.deque[Row] = collections.deque()
        self._encoding: list[Row] = []
        self._slots = Slots(plan.schedule.max_rows)
        self._to_release: list[int] = []
        self._to_drop: list[int] = []
        self._phases = self._failed = self._finished = self._tokens = 0

    # Who asks.

    def submit(self, request: Request) -> None:
        """Queues a request. Raises ValueError with one line where it can never run."""
        self._check(request)
        arrival_s = self._clock() if request.arrival_s is None else request.arrival_s
        with self._wake:
            if self._stopping:
                raise ValueError(f"request {request.id}: the runner is stopping")
            if request.id in self._ids:
                raise ValueError(f"id: {request.id!r} is already running; choose another")
            self._ids.add(request.id)
            self._inbox.append(Row(next(self._numbers), request, arrival_s))
            self._wake.notify_all()

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next phase boundary; unknown ids are ignored, since it may have ended just now."""
        with self._wake:
            if request_id in self._ids:
                self._cancelled.add(request_id)
                self._wake.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Waits until every request has its last event; False if the time ran out."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._ids, timeout_s)

    def start(self) -> None:
        """Begins to run phases on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the phase under way; what is left gets an abort event."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._take_inbox()
        self._end(self._everybody(), "abort", "the runner stopped")

    def stats(self) -> Stats:
        """A snapshot from any thread; counts of a phase under way may be torn between fields."""
        return Stats(
            waiting=len(self._waiting) + len(self._inbox),
            running=len(self._slots.rows) + len(self._encoding),
            phases=self._phases,
            failed_phases=self._failed,
            finished=self._finished,
            generated_tokens=self._tokens,
            live_bytes=self._executor.live_bytes(),
        )

    # The loop.

    def _run(self) -> None:
        while True:
            ran = self.run_phase()
            with self._wake:
                if self._stopping:
                    return
                if not ran:
                    # Deadlines of waiting requests only matter while something runs; an idle runner has none.
                    self._wake.wait_for(lambda: self._inbox or self._cancelled or self._stopping)

    def run_phase(self) -> bool:
        """Runs one phase, unless there is nothing to do. Not to be called while the thread runs."""
        self._take_inbox()
        self._end_cancelled_and_overdue()
        command = self._next_command()
        if command is None:
            return False
        self._phases += 1
        try:
            dispatched_s = self._clock()
            pending = self._executor.dispatch(command)
            encode_ready_s = self._hand_over_encoded(command, pending, dispatched_s)
            self._hand_over_decoded(command, pending, encode_ready_s)
        # Whatever a program or its device may raise costs the requests on it, never the loop.
        except Exception as error:
            self._recover(error)
        return True

    def _take_inbox(self) -> None:
        with self._wake:
            arrived, self._inbox = self._inbox, []
        self._waiting.extend(arrived)

    def _end_cancelled_and_overdue(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
        now_s = self._clock()
        rows = self._everybody()
        overdue = [r for r in rows if r.request.deadline_s is not None and r.request.deadline_s <= now_s]
        self._end([r for r in rows if r.request.id in cancelled], "abort", "cancelled")
        self._end([r for r in overdue if r.request.id not in cancelled], "deadline", "the deadline passed")

    def _next_command(self) -> PhaseCommand | None:
        """Admits, compacts, and puts the phase into words; None if there is nothing to do."""
        schedule, buckets = self.plan.schedule, self.plan.buckets
        promised = len(self._encoding)
        view = View(len(self._waiting), promised, len(self._slots.rows), self._slots.free - promised)
        decision = self._policy(schedule, view)
        moves = self._compact(decision, buckets.decode_rows)
        self._encoding += [self._waiting.popleft() for _ in range(decision.admit)]
        calls = encode_calls(self._encoding, self._slots, buckets, decision.prompt_tokens)
        self._encoding = [row for row in self._encoding if row.slot is None]
        release, self._to_release = tuple(self._to_release), []
        drop, self._to_drop = tuple(self._to_drop), []
        decode = self._decode_call(decision)
        if not (calls or release or drop or decode):
            return None
        return PhaseCommand(self._phases, drop, release, moves, calls, decode)

    def _compact(self, decision: Decision, ladder: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Moves rows down if all that will be live then fit a smaller bucket."""
        expected = len(self._slots.rows) + len(self._encoding) + decision.admit
        if not decision.compact or expected == 0 or self._slots.highest == 0:
            return ()
        smaller = round_up(expected, ladder)
        return self._slots.compact(smaller) if round_up(self._slots.highest, ladder) > smaller else ()

    def _decode_call(self, decision: Decision) -> DecodeCall | None:
        """The smallest bucket with every live row; as many iterations as anybody can still use."""
        rows = [row for row in self._slots.rows.values() if row.remaining_tokens > 0]
        # A row whose first token this phase encodes has not counted it yet.
        fresh = {row.number for row in rows if row.first_token_s == 0.0}
        left = [row.remaining_tokens - (row.number in fresh) for row in rows]
        iterations = min(decision.iterations, max(left, default=0))
        if iterations <= 0:
            return None
        reach = max(
            row.cached_tokens + (row.number in fresh) + min(iterations, own)
            for row, own in zip(rows, left, strict=True)
        )
        return DecodeCall(
            iterations=iterations,
            rows_bucket=round_up(self._slots.highest, self.plan.buckets.decode_rows),
            cache_bucket=round_up(reach, self.plan.buckets.cache_tokens),
        )

    # What comes back.

    def _hand_over_encoded(self, command: PhaseCommand, pending: Pending, dispatched_s: float) -> float:
        if not command.encode:
            return dispatched_s
        admitted = {encode_row.request for call in command.encode for encode_row in call.rows}
        for row in (*self._slots.rows.values(), *self._encoding):
            if row.number in admitted:
                row.encode_start_s = row.encode_start_s or dispatched_s
        results = pending.encoded()
        ready_s = self._clock()
        slots = self._slots.rows
        outcome = delivery.first_tokens(command.encode, results, slots, ready_s)
        self.timeline.add(_encode_entry(command, command.encode, dispatched_s, ready_s))
        self._deliver(outcome, ready_s)
        return ready_s

    def _hand_over_decoded(self, command: PhaseCommand, pending: Pending, dispatched_s: float) -> None:
        result = pending.decoded()
        if command.decode is None or result is None:
            return
        ready_s = self._clock()
        outcome = delivery.decoded_tokens(result, self._slots.rows, ready_s)
        self.timeline.add(
            TimelineEntry(
                phase=command.phase,
                kind="decode",
                stage=0,
                dispatched_s=dispatched_s,
                ready_s=ready_s,
                rows=outcome.rows,
                tokens=outcome.tokens,
                iterations=outcome.iterations,
                rows_bucket=command.decode.rows_bucket,
                tokens_bucket=command.decode.cache_bucket,
            )
        )
        self._deliver(outcome, ready_s)

    def _deliver(self, outcome: delivery.Outcome, now_s: float) -> None:
        self._tokens += outcome.tokens
        events: list[Event] = list(outcome.events)
        for row, reason, stop_token in outcome.ended:
            events.append(delivery.finished(row, reason, stop_token, "", now_s))
            self._free(row)
        self._emit(events)

    def _recover(self, error: Exception) -> None:
        """Fails everybody who was on the devices and begins with an empty cache."""
        _LOG.exception("phase %d failed", self._phases)
        self._failed += 1
        on_devices = [*self._slots.rows.values(), *self._encoding]
        self._end(on_devices, "error", f"{type(error).__name__}: {error}")
        self._to_release, self._to_drop = [], []
        self._executor.reset()

    # Rows.

    def _everybody(self) -> list[Row]:
        return [*self._slots.rows.values(), *self._encoding, *self._waiting]

    def _end(self, rows: list[Row], reason: Reason, detail: str) -> None:
        """Ends requests before their time, wherever they are."""
        if not rows:
            return
        now_s = self._clock()
        gone = {row.number for row in rows}
        self._emit([delivery.finished(row, reason, None, detail, now_s) for row in rows])
        for row in rows:
            self._free(row)
        self._waiting = collections.deque(row for row in self._waiting if row.number not in gone)
        self._to_drop += [row.number for row in self._encoding if row.number in gone and row.encoded]
        self._encoding = [row for row in self._encoding if row.number not in gone]

    def _free(self, row: Row) -> None:
        if row.slot is not None:
            self._to_release.append(row.slot)
            self._slots.give_back(row.slot)

    def _emit(self, events: list[Event]) -> None:
        if not events:
            return
        self._on_events(events)
        ended = [event.id for event in events if isinstance(event, delivery.Finished)]
        self._finished += len(ended)
        if ended:
            with self._wake:
                self._ids.difference_update(ended)
                self._cancelled.difference_update(ended)
                self._wake.notify_all()

    def _check(self, request: Request) -> None:
        prompt, sampling = len(request.prompt_ids), request.sampling
        if prompt == 0:
            raise ValueError("prompt: empty; give at least one token")
        if prompt > self.plan.max_prompt_tokens:
            raise ValueError(f"prompt: {prompt} tokens exceed the limit of {self.plan.max_prompt_tokens}; shorten it")
        if prompt + sampling.max_tokens > self.plan.cache_tokens:
            room = self.plan.cache_tokens - prompt
            raise ValueError(
                f"max_tokens: {sampling.max_tokens} and a prompt of {prompt} tokens exceed {self.plan.cache_tokens} "
                f"positions; ask for at most {room}"
            )
        if len(request.generated_ids) >= sampling.max_tokens:
            raise ValueError(f"max_tokens: {sampling.max_tokens} were generated already; nothing is left to do")


def _encode_entry(
    command: PhaseCommand, calls: tuple[EncodeCall, ...], dispatched_s: float, ready_s: float
) -> TimelineEntry:
    return TimelineEntry(
        phase=command.phase,
        kind="encode",
        stage=0,
        dispatched_s=dispatched_s,
        ready_s=ready_s,
        rows=sum(len(call.rows) for call in calls),
        tokens=sum(len(row.token_ids) for call in calls for row in call.rows),
        rows_bucket=max(call.rows_bucket for call in calls),
        tokens_bucket=max(call.tokens_bucket for call in calls),
    )
