"""Policies that encode and decode on devices apart, asynchronously: waa, waa-c, waa-m, disaggregated.

Encode devices take the next batch when they are free and its payload finds a buffer: at most two batches are encoded
and not yet let in. Decode devices let in, before each iteration, whatever has been handed over and fits.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np

from solver.plan.correction import corrected_batch, most_encoded
from solver.plan.micro_batches import decode_parts
from solver.plan.schedule import Schedule
from solver.plan.timeline import Timeline
from solver.plan.under_way import most_batches, rows_to_correct
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.clock import Clock
from solver.simulate.events.costs import Costs, DecodePhase
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.queue import Queue, Room
from solver.simulate.events.record import Moments, Phase, Totals, Work, note, outcome_of
from solver.simulate.events.rows import Rows


@dataclasses.dataclass(frozen=True)
class Payload:
    """An encoded batch on its way: its requests, and when it is there."""

    members: slice
    ready_s: float


class ApartLoop:
    """One run of one replica.

    Args:
      schedule: `encode_batch` prompts at most are encoded together.
      encode, decode: costs of the two pipelines.
      demand: everybody who asks.
      room: of the decode side.
      hand_over_s: seconds from encode to decode devices of one prompt token.
      first_token, corrected: as `solver.simulate.events.simulate` has them.
      timeline: gets the entries; decode stages are numbered behind encode stages.
    """

    def __init__(
        self,
        schedule: Schedule,
        encode: Costs,
        decode: Costs,
        demand: Demand,
        room: Room,
        hand_over_s: float,
        first_token: str,
        corrected: bool,
        timeline: Timeline,
    ) -> None:
        self._schedule, self._encode_costs, self._decode_costs, self._demand = schedule, encode, decode, demand
        self._room, self._hand_over_s, self._timeline = room, hand_over_s, timeline
        self._first_token, self._corrected = first_token, corrected and schedule.policy != "disaggregated"
        self._decode = demand.decode_iterations(first_token)
        self._encoder, self._decoder = Clock(encode.stages, encode.return_s), Clock(decode.stages, decode.return_s)
        self._parts = decode_parts(schedule)
        self._ready_s = [0.0] * self._parts
        self._queue, self._rows = Queue(demand, Room(2**62)), Rows()
        self._flying: collections.deque[Payload] = collections.deque()
        # When a buffer of the encode side fell free, for batches to come.
        self._buffer_s: collections.deque[float] = collections.deque([0.0] * most_batches(encode.stages))
        self._phases: list[Phase] = []
        self._done_s: list[float] = []
        self._start_s, self._encoded_s = np.zeros(len(demand)), np.zeros(len(demand))
        self._ends = np.zeros(len(demand), np.int64)
        self._deferrals = self._deferred_to = 0
        # Everybody from the oldest who may still decode to the last who has joined.
        self._oldest = self._joined = 0

    def run(self) -> Outcome:
        while self._queue.left or self._flying or self._rows.live:
            self._encode_ahead()
            self._iterate()
        busy_s = np.concatenate([self._encoder.busy_s, self._decoder.busy_s])
        totals = Totals(self._deferrals, 0, busy_s, self._timeline)
        return outcome_of(self._demand, self._phases, self._moments(), int(self._decode.max()), totals)

    def _encode_ahead(self) -> None:
        """Encodes all that starts before the decode side's next iteration, or as much as it waits for."""
        while self._queue.left and self._buffer_s:
            start_s = max(self._encoder.free_s[0], self._buffer_s[0], self._queue.next_arrival_s)
            idle = not (self._rows.live or self._flying)
            if start_s > self._ready_s[0] and not idle:
                return
            self._buffer_s.popleft()
            self._encode(start_s)

    def _encode(self, start_s: float) -> None:
        wanted = self._schedule.encode_batch
        if self._corrected:
            flying = sum(payload.members.stop - payload.members.start for payload in self._flying)
            ahead = self._queue.ahead(min(most_encoded(self._schedule), self._queue.waiting(start_s)))
            # Rows for which the decode side has no room wait in a buffer, of which there are few.
            live = rows_to_correct(self._schedule, self._rows.live, flying)
            wanted = max(1, corrected_batch(self._schedule, live, ahead))
        waiting = min(wanted, self._queue.waiting(start_s))
        first, admitted, _ = self._queue.take(waiting, 0, 0.0, 0, alone=False)
        members = slice(first, first + admitted)
        inputs = self._demand.input_tokens[members]
        parts = math.ceil(admitted / self._schedule.encode_micro_batch)
        done_s = self._encoder.encode(self._encode_costs.encode(inputs, parts), start_s)[-1]
        self._start_s[members], self._encoded_s[members] = start_s, done_s
        moved_s = self._hand_over_s * self._encode_costs.moved_tokens(inputs)
        self._flying.append(Payload(members, done_s + moved_s))
        work = Work("encode", admitted, int(inputs.sum()))
        note(self._timeline, len(self._phases), work, start_s, self._encoder.free_s)

    def _iterate(self) -> None:
        """Lets in what is there and runs one iteration."""
        rows = self._rows
        if not rows.live and self._flying:
            self._ready_s = [max(ready_s, self._flying[0].ready_s) for ready_s in self._ready_s]
        now_s = self._ready_s[0]
        first, admitted, deferred = self._let_in(now_s)
        before, live, tokens = rows.iteration, rows.live, rows.tokens
        self._phases.append(Phase(now_s, first, admitted, before, live, live, tokens + live, deferred))
        if not live:
            return
        parts = min(self._parts, live)
        phase = DecodePhase(np.array([live]), np.array([tokens / live]), parts, 1, live, self._reach())
        # Each iteration is a call of its own.
        ready_s = [part_s + self._decode_costs.phase_s for part_s in self._ready_s[:parts]]
        done_s = self._decoder.decode(self._decode_costs.decode(phase), ready_s)[0]
        self._ready_s = [*done_s.tolist(), *[float(done_s[-1])] * (self._parts - parts)]
        self._done_s.append(float(done_s.max()))
        rows.step()
        work = Work("decode", live, live, 1, first_stage=self._encode_costs.stages)
        note(self._timeline, len(self._phases), work, now_s, self._decoder.free_s)

    def _reach(self) -> int:
        """Positions of the longest row behind the next iteration; 0 unless the costs ask for it."""
        if not self._decode_costs.most_decode:
            return 0
        iteration = self._rows.iteration
        while self._ends[self._oldest] <= iteration:
            self._oldest += 1
        joined = slice(self._oldest, self._joined)
        live = self._ends[joined] > iteration
        behind = iteration - (self._ends[joined] - self._decode[joined])[live]
        return int((self._demand.input_tokens[joined][live] + behind).max()) + 1

    def _let_in(self, now_s: float) -> tuple[int, int, bool]:
        """Who has been handed over and fits, in order; with the last of a batch its buffer falls free."""
        first, admitted = self._flying[0].members.start if self._flying else 0, 0
        while self._flying and self._flying[0].ready_s <= now_s:
            payload = self._flying.popleft()
            start, stop = payload.members.start, payload.members.stop
            fitting = self._fitting(payload.members)
            members = slice(start, start + fitting)
            self._ends[members] = self._rows.join(self._demand.input_tokens[members], self._decode[members])
            admitted, self._joined = admitted + fitting, members.stop
            if start + fitting < stop:
                self._flying.appendleft(Payload(slice(start + fitting, stop), payload.ready_s))
                self._deferrals += max(0, stop - max(start + fitting, self._deferred_to))
                self._deferred_to = max(self._deferred_to, stop)
                return first, admitted, True
            self._buffer_s.append(now_s)
        return first, admitted, False

    def _fitting(self, members: slice) -> int:
        """How many of these requests there is room for, a token for each row included."""
        rows_left = self._room.rows - self._rows.live
        needed = np.cumsum(self._demand.input_tokens[members] + 1)
        tokens_left = self._room.tokens - self._rows.tokens - self._rows.live
        fitting = min(rows_left, int(np.searchsorted(needed, tokens_left, side="right")), len(needed))
        if fitting <= 0 and not self._rows.live:
            raise ValueError(f"cache_tokens: too few for a prompt of {needed[0] - 1} tokens; allow more")
        return max(0, fitting)

    def _moments(self) -> Moments:
        done_s = np.array([0.0, *self._done_s])
        lasts_s = np.where(self._decode > 0, done_s[self._ends], self._encoded_s)
        firsts_s = self._encoded_s
        if self._first_token == "decode":
            firsts_s = done_s[self._ends - self._decode + 1]
        return Moments(self._start_s, firsts_s, lasts_s)
