"""What is on encode devices, on its way and on decode devices, and the next phases of either side in words.

    waiting -> encode phase, while a buffer is free and bytes allow -> flight -> insert, decode one iteration

As `solver.simulate.events.apart` has it: encode devices run ahead by a double buffer; whatever has arrived and fits is
let in before each iteration, in order; B_E is corrected to hold the planned decode batch, flights included. Decode
micro-batches go one iteration at a time, each when its own tokens are back, and as many as there are, side by side.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from exegpt_jax.engine.api import ApartExecutor, DecodeCall, PhaseCommand, Travelling
from exegpt_jax.runner.batch import Batch, Queue
from exegpt_jax.runner.calls import encode_calls
from exegpt_jax.runner.rows import Row
from solver.plan.buckets import Buckets, attended_tokens, round_up
from solver.plan.correction import corrected_batch, most_encoded
from solver.plan.micro_batches import decode_parts, place_of
from solver.plan.packing import pack
from solver.plan.plan import Plan
from solver.plan.under_way import most_batches, rows_to_correct, sides, works_apart


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


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One iteration of a decode micro-batch, from its dispatch until its tokens are read.

    Attributes:
      command: its phase.
      pending: the same, under way.
      rows: who is in it, by the slot in which it began; some may have ended or moved since.
      dispatched_s: when.
    """

    command: PhaseCommand
    pending: Travelling
    rows: Mapping[int, Row]
    dispatched_s: float


class ApartBatch(Batch):
    """The admitted rows of a plan whose sides are apart. Used by the Runner's thread alone.

    Attributes:
      slots: rows that decode, by slot.
      encoding: rows that are encoded or on their way, by number, in order of arrival.
      flights: their batches, the oldest first.
      passes: of decode micro-batches, the oldest first.
      parts: m_D, decode micro-batches.
      encode_stages, decode_stages: indices in the plan.
    """

    def _take(self, plan: Plan) -> None:
        self._plan, self.schedule = plan, plan.schedule
        roles = [stage.role for stage in plan.schedule.stages]
        sides(plan.schedule.stages)
        self.encode_stages = tuple(index for index, role in enumerate(roles) if role == "encode")
        self.decode_stages = tuple(index for index, role in enumerate(roles) if role == "decode")
        self.parts = decode_parts(plan.schedule)

    def _clear(self) -> None:
        super()._clear()
        self._begin()

    def _begin(self) -> None:
        self.flights: list[Flight] = []
        self.passes: collections.deque[Pass] = collections.deque()
        # When the first encode stage had done what it was given last, as far as is known.
        self._free_s = 0.0
        self._next_part = 0

    def go_on_under(self, plan: Plan) -> None:
        super().go_on_under(plan)
        self._begin()

    def idle(self, waiting: Queue) -> bool:
        """Whether there is nothing to do for either side."""
        busy = self.flights or self.passes or self.rows or self._to_release or self._to_drop
        return not (busy or (waiting and not self.holding))

    def next_encode(
        self, phases: Iterator[int], waiting: Queue, now_s: float, executor: ApartExecutor
    ) -> PhaseCommand | None:
        """Admits the next batch, if the encode side may take one more: `took_off` must follow."""
        encoding = sum(not flight.delivered for flight in self.flights)
        if self.holding or not waiting or len(self.flights) >= most_batches(len(self.encode_stages)):
            return None
        if encoding > len(self.encode_stages):
            return None
        first = itertools.islice(waiting.values(), most_encoded(self.schedule))
        prompts = [len(row.source_ids) for row in first]
        early = max(0, encoding + 1 - len(self.encode_stages))
        live = rows_to_correct(self.schedule, len(self.slots.rows), len(self.encoding), early)
        wanted = max(1, corrected_batch(self.schedule, live, prompts))
        # A whole batch is sent ahead, so that encode devices need not wait for the loop; a smaller one may still grow.
        if encoding == len(self.encode_stages) and len(waiting) < wanted:
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

    def was_encoded(self, flight: Flight, first_stage_s: float) -> None:
        """Its first tokens are there, the first stage was done with it at `first_stage_s`.

        That stage began with it when it had done with the batch before.
        """
        began_s = max(flight.dispatched_s, self._free_s)
        for row in flight.rows:
            row.encode_start_s = min(began_s, first_stage_s)
        self._free_s = first_stage_s
        flight.delivered = True

    def next_decode(self, phases: Iterator[int]) -> PhaseCommand | None:
        """Lets in who has arrived and fits, and the next iteration of a micro-batch; None if nothing is to do now."""
        landing = self._landing()
        moves = self._compact(len(self.slots.rows) + len(landing))
        insert = tuple((row.number, self.slots.take(row)) for row in landing)
        for row in landing:
            del self.encoding[row.number]
        self.flights = [flight for flight in self.flights if any(row.number in self.encoding for row in flight.rows)]
        release, self._to_release = tuple(self._to_release), []
        drop, self._to_drop = tuple(self._to_drop), []
        decode = self._next_pass()
        if not (insert or release or drop or moves or decode):
            return None
        return PhaseCommand(next(phases), drop, release, moves, decode=decode, insert=insert)

    def _next_pass(self) -> DecodeCall | None:
        """One iteration of the next micro-batch, in turns, that has rows and is not under way."""
        under_way = {each.command.decode.part for each in self.passes if each.command.decode is not None}
        # Rows that have moved from a micro-batch under way are a token further than is known.
        ahead = {row.number for each in self.passes for row in each.rows.values()}
        for offset in range(self.parts):
            part = (self._next_part + offset) % self.parts
            rows = self.rows_of(part)
            if not rows or (part if self.parts > 1 else None) in under_way:
                continue
            self._next_part = (part + 1) % self.parts
            buckets = self._plan.buckets
            rows_bucket = round_up(self.slots.highest, buckets.decode_rows)
            reach = max(row.cached_tokens + (row.number in ahead) for row in rows.values()) + 1
            # A decoder that begins with a start token holds it besides the tokens that it has told.
            reach = min(reach + (self._plan.first_token == "decode"), self._plan.cache_tokens)
            all_rows = rows_bucket == buckets.decode_rows[-1]
            attended = attended_tokens(reach, 1, all_rows, buckets.cache_tokens)
            return DecodeCall(1, rows_bucket, attended, part if self.parts > 1 else None)
        return None

    def rows_of(self, part: int | None) -> dict[int, Row]:
        """Rows of a micro-batch by slot; None: of all."""
        rows = self.slots.rows
        if part is None:
            return dict(rows)
        return {slot: row for slot, row in rows.items() if place_of(slot, self.parts)[0] == part}

    def _landing(self) -> list[Row]:
        """Rows that have arrived, in order, as many as there are slots."""
        rows: list[Row] = []
        for flight in self.flights:
            if not (flight.delivered and flight.pending.has_arrived()):
                break
            rows += [row for row in flight.rows if row.number in self.encoding]
        return rows[: self.slots.free]


def batch_of(plan: Plan) -> Batch:
    """The batch for a plan. Raises ValueError where its policy is not executed."""
    return ApartBatch(plan) if works_apart(plan.schedule) else Batch(plan)


def _payload_bytes(prompts: Sequence[int], buckets: Buckets, executor: ApartExecutor) -> int:
    """What a batch of these prompts holds on its way, in the shapes that it is compiled in."""
    largest = buckets.encode_tokens[-1]
    calls = pack([length for length in prompts if length <= largest], buckets)
    shapes = [(call.rows_bucket, call.tokens_bucket) for call in calls]
    shapes += [(1, round_up(length, buckets.cache_tokens)) for length in prompts if length > largest]
    return sum(executor.payload_bytes(rows, tokens) for rows, tokens in shapes)
