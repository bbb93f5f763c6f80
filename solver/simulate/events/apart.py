"""Policies that encode and decode on devices apart, asynchronously: waa, waa-c, waa-m, disaggregated.

Encode devices take the next batch when they are free and its payload finds a buffer: at most two batches are encoded
and not yet let in. Decode devices let in, before each iteration, whatever has been handed over and fits. Of several
replicas of a side, the encode pipeline that is free first takes the next batch, for the decode pipeline with the fewest
requests.
"""

from __future__ import annotations

import collections
import math

import numpy as np

from solver.plan.correction import corrected_batch, most_encoded
from solver.plan.schedule import Schedule
from solver.plan.timeline import Timeline
from solver.plan.under_way import most_batches, rows_to_correct
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.clock import Clock
from solver.simulate.events.costs import Costs
from solver.simulate.events.decode_side import DecodeSide
from solver.simulate.events.outcome import Outcome, merged
from solver.simulate.events.queue import Queue, Room
from solver.simulate.events.record import Work, note


class _Encoder:
    """One encode pipeline.

    Attributes:
      clock: of its stages.
      buffers: when each of those that are free fell free; payloads to come need one.
    """

    def __init__(self, costs: Costs) -> None:
        self.clock = Clock(costs.stages, costs.return_s)
        self.buffers: collections.deque[float] = collections.deque([0.0] * most_batches(costs.stages))

    @property
    def next_s(self) -> float:
        """When it could start; inf while no buffer is free."""
        return max(self.clock.free_s[0], self.buffers[0]) if self.buffers else math.inf


class ApartLoop:
    """One run of one copy of the schedule.

    Args:
      schedule: `encode_batch` prompts at most are encoded together.
      encode, decode: costs of the two kinds of pipelines.
      demand: everybody who asks.
      room: of a decode pipeline.
      hand_over_s: seconds from encode to decode devices of one prompt token.
      first_token, corrected: as `solver.simulate.events.simulation.simulate` has them.
      timeline: gets the entries of the first pipeline of each side; decode stages are numbered behind encode stages.
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
        self._schedule, self._costs, self._demand = schedule, encode, demand
        self._hand_over_s, self._timeline = hand_over_s, timeline
        self._corrected = corrected
        self._queue = Queue(demand, Room(2**62))
        self._encoders = [_Encoder(encode) for _ in range(schedule.encode_replicas)]
        self._sides = [
            DecodeSide(
                schedule, decode, demand, first_token, room, timeline if not index else Timeline(1), encode.stages
            )
            for index in range(schedule.decode_replicas)
        ]

    def run(self) -> Outcome:
        while self._queue.left or any(math.isfinite(side.next_s) for side in self._sides):
            self._encode_ahead()
            min(self._sides, key=lambda side: side.next_s).iterate()
        encoder = self._encoders[0].clock
        asked = [side for side in self._sides if side.phases]
        return merged(tuple(side.outcome(np.concatenate([encoder.busy_s, side.busy_s])) for side in asked))

    def _encode_ahead(self) -> None:
        """Encodes all that starts before a decode side's next iteration, or as much as they wait for."""
        while self._queue.left:
            encoder = min(self._encoders, key=lambda each: each.next_s)
            start_s = max(encoder.next_s, self._queue.next_arrival_s)
            if start_s > min(side.next_s for side in self._sides) or math.isinf(start_s):
                return
            self._encode(encoder, start_s)

    def _encode(self, encoder: _Encoder, start_s: float) -> None:
        encoder.buffers.popleft()
        side = min(self._sides, key=lambda each: each.rows.live + each.flying)
        wanted = self._schedule.encode_batch
        if self._corrected:
            ahead = self._queue.ahead(min(most_encoded(self._schedule), self._queue.waiting(start_s)))
            # Rows for which the decode side has no room wait in a buffer, of which there are few.
            live = rows_to_correct(self._schedule, side.rows.live, side.flying)
            wanted = max(1, corrected_batch(self._schedule, live, ahead))
        waiting = min(wanted, self._queue.waiting(start_s))
        first, admitted, _ = self._queue.take(waiting, 0, 0.0, 0, alone=False)
        members = slice(first, first + admitted)
        inputs = self._demand.input_tokens[members]
        parts = math.ceil(admitted / self._schedule.encode_micro_batch)
        done_s = encoder.clock.encode(self._costs.encode(inputs, parts), start_s)[-1]
        moved_s = self._hand_over_s * self._costs.moved_tokens(inputs)
        side.hand_over(members, start_s, done_s, done_s + moved_s, encoder.buffers)
        if encoder is self._encoders[0]:
            work = Work("encode", admitted, int(inputs.sum()))
            note(self._timeline, side.phases, work, start_s, encoder.clock.free_s)
