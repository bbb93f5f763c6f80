"""What is on encode devices, on its way and on decode devices, and the next phases of either side in words.

    waiting -> encode phase, while a buffer is free and bytes allow -> flight -> insert, decode one iteration

As `solver.simulate.events.apart` has it: encode devices run ahead by a double buffer; whatever has arrived and fits is
let in before each iteration, in order; B_E is corrected to hold the planned decode batch, flights included.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from exegpt_jax.engine.api import ApartExecutor, PhaseCommand, Travelling
from exegpt_jax.runner.batch import Batch, Queue
from exegpt_jax.runner.calls import encode_calls
from exegpt_jax.runner.policies import Decision
from exegpt_jax.runner.rows import Row
from solver.plan.buckets import Buckets, round_up
from solver.plan.correction import corrected_batch, most_encoded
from solver.plan.packing import pack
from solver.plan.plan import Plan
from solver.plan.under_way import APART_POLICIES, most_batches, rows_to_correct, sides


@dataclasses.dataclass(eq=False)
class Flight:
    """A batch of prompts from its encode phase to the insertion of its last row.

    Attributes:
      command: its encode phase.
      pending: the same, under way.
      rows: who is in it.
      payload_bytes: that it holds until it is inserted.
      dispatched_s: of its encode phase.
      delivered: its first tokens have been handed out.
    """

    command: PhaseCommand
    pending: Travelling
    rows: tuple[Row, ...]
    payload_bytes: int
    dispatched_s: float
    delivered: bool = False


class ApartBatch(Batch):
    """The admitted rows of a plan whose sides are apart. Used by the Runner's thread alone.

    Attributes:
      slots: rows that decode, by slot.
      encoding: rows that are encoded or on their way, by number, in order of arrival.
      flights: their batches, the oldest first.
      encode_stages: of the plan.
      first_encode_stage, first_decode_stage: indices in the plan.
    """

    def _take(self, plan: Plan) -> None:
        self._plan, self.schedule = plan, plan.schedule
        stages = plan.schedule.stages
        encode, decode = sides(stages)
        self.encode_stages = len(encode)
        self.first_encode_stage, self.first_decode_stage = stages.index(encode[0]), stages.index(decode[0])

    def _clear(self) -> None:
        super()._clear()
        self.flights: list[Flight] = []
        # When the stages' last batches were ready: the next one began then at the earliest.
        self._ready_s: collections.deque[float] = collections.deque(maxlen=self.encode_stages)

    def go_on_under(self, plan: Plan) -> None:
        super().go_on_under(plan)
        self._ready_s = collections.deque(maxlen=self.encode_stages)

    def idle(self, waiting: Queue) -> bool:
        """Whether there is nothing to do for either side."""
        return not (self.flights or self.rows or self._to_release or self._to_drop or (waiting and not self.holding))

    def next_encode(
        self, phases: Iterator[int], waiting: Queue, now_s: float, executor: ApartExecutor
    ) -> PhaseCommand | None:
        """Admits the next batch, if the encode side may take one more: `took_off` must follow."""
        encoding = sum(not flight.delivered for flight in self.flights)
        if self.holding or not waiting or len(self.flights) >= most_batches(self.encode_stages):
            return None
        if encoding > self.encode_stages:
            return None
        first = itertools.islice(waiting.values(), most_encoded(self.schedule))
        prompts = [len(row.source_ids) for row in first]
        early = max(0, encoding + 1 - self.encode_stages)
        live = rows_to_correct(self.schedule, len(self.slots.rows), len(self.encoding), early)
        wanted = max(1, corrected_batch(self.schedule, live, prompts))
        # A whole batch is sent ahead, so that encode devices need not wait for the loop; a smaller one may still grow.
        if encoding == self.encode_stages and len(waiting) < wanted:
            return None
        admit = self._within_bytes(prompts[:wanted], executor)
        rows = [waiting.popitem(last=False)[1] for _ in range(admit)]
        if not rows:
            return None
        self.encoding |= {row.number: row for row in rows}
        return PhaseCommand(next(phases), encode=encode_calls(rows, None, self._plan.buckets, None, now_s))

    def _within_bytes(self, prompts: Sequence[int], executor: ApartExecutor) -> int:
        """How many of the first are admitted: all, or none while others are under way, or what fits alone."""
        free = executor.buffer_bytes - sum(flight.payload_bytes for flight in self.flights)
        admit, buckets = len(prompts), self._plan.buckets
        if self.flights:
            return admit if _payload_bytes(prompts, buckets, executor) <= free else 0
        while admit > 1 and _payload_bytes(prompts[:admit], buckets, executor) > free:
            admit -= 1
        return admit

    def took_off(self, command: PhaseCommand, pending: Travelling, executor: ApartExecutor, now_s: float) -> None:
        """The batch that `next_encode` put into words is under way."""
        numbers = dict.fromkeys(row.request for call in command.encode for row in call.rows)
        rows = tuple(self.encoding[number] for number in numbers)
        held = _payload_bytes([len(row.source_ids) for row in rows], self._plan.buckets, executor)
        self.flights.append(Flight(command, pending, rows, held, now_s))

    def was_encoded(self, flight: Flight, ready_s: float) -> None:
        """Its first tokens are there: its work began when its stages had done with what came before."""
        began_s = flight.dispatched_s
        if len(self._ready_s) == self.encode_stages:
            began_s = max(began_s, self._ready_s[0])
        for row in flight.rows:
            row.encode_start_s = min(began_s, ready_s)
        self._ready_s.append(ready_s)
        flight.delivered = True

    def next_decode(self, phases: Iterator[int]) -> PhaseCommand | None:
        """One iteration for all rows, those included that have arrived and fit; None if decode devices need nothing."""
        landing = self._landing()
        moves = self._compact(len(self.slots.rows) + len(landing))
        insert = tuple((row.number, self.slots.take(row)) for row in landing)
        for row in landing:
            del self.encoding[row.number]
        self.flights = [flight for flight in self.flights if any(row.number in self.encoding for row in flight.rows)]
        release, self._to_release = tuple(self._to_release), []
        drop, self._to_drop = tuple(self._to_drop), []
        decode = self._decode_call(Decision(0, 1))
        if not (insert or release or drop or decode):
            return None
        return PhaseCommand(next(phases), drop, release, moves, decode=decode, insert=insert)

    def _landing(self) -> list[Row]:
        """Rows that have arrived, in order, as many as there are slots."""
        rows: list[Row] = []
        for flight in self.flights:
            if not (flight.delivered and flight.pending.has_arrived()):
                break
            rows += [row for row in flight.rows if row.number in self.encoding]
        return rows[: self.slots.free]


def works_apart(plan: Plan) -> bool:
    """Whether its encode devices and decode devices are apart."""
    return plan.schedule.policy in APART_POLICIES


def batch_of(plan: Plan) -> Batch:
    """The batch for a plan. Raises ValueError where its policy is not executed."""
    return ApartBatch(plan) if works_apart(plan) else Batch(plan)


def _payload_bytes(prompts: Sequence[int], buckets: Buckets, executor: ApartExecutor) -> int:
    """What a batch of these prompts holds on its way, in the shapes that it is compiled in."""
    largest = buckets.encode_tokens[-1]
    calls = pack([length for length in prompts if length <= largest], buckets)
    shapes = [(call.rows_bucket, call.tokens_bucket) for call in calls]
    shapes += [(1, round_up(length, buckets.cache_tokens)) for length in prompts if length > largest]
    return sum(executor.payload_bytes(rows, tokens) for rows, tokens in shapes)
