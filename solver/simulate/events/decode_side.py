"""One decode pipeline of a policy that works apart: what has been handed over to it, and who decodes there."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.micro_batches import decode_parts
from solver.plan.schedule import Schedule
from solver.plan.timeline import Timeline
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.clock import Clock
from solver.simulate.events.costs import Costs, DecodePhase
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.queue import Room
from solver.simulate.events.record import Moments, Phase, Totals, Work, note, outcome_of
from solver.simulate.events.rows import Rows


@dataclasses.dataclass(frozen=True)
class Payload:
    """An encoded batch on its way.

    Attributes:
      members: its requests, as the side that gets it numbers them.
      ready_s: when it is there.
      buffers: of the encode side: they get one back when all of it has been let in.
    """

    members: slice
    ready_s: float
    buffers: collections.deque[float]


class DecodeSide:
    """Lets in, before each iteration, whatever has been handed over and fits.

    Requests are numbered in the order in which they are handed over.

    Args:
      schedule: in force.
      costs: of the pipeline.
      demand: everybody who asks.
      first_token: as `solver.simulate.events.simulation.simulate` has it.
      room: for rows.
      timeline: gets the entries.
      first_stage: number of the pipeline's first stage there.
    """

    def __init__(
        self,
        schedule: Schedule,
        costs: Costs,
        demand: Demand,
        first_token: str,
        room: Room,
        timeline: Timeline,
        first_stage: int,
    ) -> None:
        self._costs, self._demand, self._room, self._timeline = costs, demand, room, timeline
        self._first_token, self._first_stage = first_token, first_stage
        self._most_decode = int(demand.decode_iterations(first_token).max())
        self._clock = Clock(costs.stages, costs.return_s)
        self._parts = decode_parts(schedule)
        self._ready_s = [0.0] * self._parts
        self.rows = Rows()
        self._flying: collections.deque[Payload] = collections.deque()
        # Of requests, as numbered here; `_numbers` are those of the demand.
        self._numbers, self._decode, self._ends = (np.zeros(len(demand), np.int64) for _ in range(3))
        self._start_s, self._encoded_s = np.zeros(len(demand)), np.zeros(len(demand))
        self._handed = 0
        # Everybody from the oldest who may still decode to the last who has joined.
        self._oldest = self._joined = 0
        self._phases: list[Phase] = []
        self._done_s: list[float] = []
        self._deferrals = self._deferred_to = 0

    @property
    def phases(self) -> int:
        """Iterations so far."""
        return len(self._phases)

    @property
    def flying(self) -> int:
        """Requests that have been encoded and not been let in."""
        return self._handed - (self._flying[0].members.start if self._flying else self._handed)

    @property
    def next_s(self) -> float:
        """When the next iteration begins; inf where there is nobody."""
        if self.rows.live:
            return self._ready_s[0]
        return max(self._ready_s[0], self._flying[0].ready_s) if self._flying else float("inf")

    @property
    def busy_s(self) -> Floats:
        return self._clock.busy_s

    def hand_over(
        self, members: slice, start_s: float, encoded_s: float, ready_s: float, buffers: collections.deque[float]
    ) -> None:
        """These requests of the demand are on their way."""
        numbers = np.arange(members.start, members.stop)
        own = slice(self._handed, self._handed + len(numbers))
        self._numbers[own] = numbers
        self._decode[own] = self._demand.decode_iterations(self._first_token)[members]
        self._start_s[own], self._encoded_s[own] = start_s, encoded_s
        self._handed = own.stop
        self._flying.append(Payload(own, ready_s, buffers))

    def iterate(self) -> None:
        """Lets in what is there and runs one iteration."""
        rows = self.rows
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
        ready_s = [part_s + self._costs.phase_s for part_s in self._ready_s[:parts]]
        done_s = self._clock.decode(self._costs.decode(phase), ready_s)[0]
        self._ready_s = [*done_s.tolist(), *[float(done_s[-1])] * (self._parts - parts)]
        self._done_s.append(float(done_s.max()))
        rows.step()
        work = Work("decode", live, live, 1, first_stage=self._first_stage)
        note(self._timeline, len(self._phases), work, now_s, self._clock.free_s)

    def outcome(self, busy_s: Floats) -> Outcome:
        """Of the requests that were handed over here; `busy_s` of the whole pipeline, encode stages first."""
        numbers = self._numbers[: self._handed]
        arrival_s = None if self._demand.arrival_s is None else self._demand.arrival_s[numbers]
        own = Demand(self._demand.input_tokens[numbers], self._demand.output_tokens[numbers], arrival_s)
        totals = Totals(self._deferrals, 0, busy_s, self._timeline)
        return outcome_of(own, self._phases, self._moments(), self._most_decode, totals)

    def _inputs(self, members: slice) -> Ints:
        return self._demand.input_tokens[self._numbers[members]]

    def _reach(self) -> int:
        """Positions of the longest row behind the next iteration; 0 unless the costs ask for it."""
        if not self._costs.most_decode:
            return 0
        iteration = self.rows.iteration
        while self._ends[self._oldest] <= iteration:
            self._oldest += 1
        joined = slice(self._oldest, self._joined)
        live = self._ends[joined] > iteration
        behind = iteration - (self._ends[joined] - self._decode[joined])[live]
        return int((self._inputs(joined)[live] + behind).max()) + 1

    def _let_in(self, now_s: float) -> tuple[int, int, bool]:
        """Who has been handed over and fits, in order; with the last of a batch its buffer falls free."""
        first, admitted = self._flying[0].members.start if self._flying else 0, 0
        while self._flying and self._flying[0].ready_s <= now_s:
            payload = self._flying.popleft()
            start, stop = payload.members.start, payload.members.stop
            fitting = self._fitting(payload.members)
            members = slice(start, start + fitting)
            self._ends[members] = self.rows.join(self._inputs(members), self._decode[members])
            admitted, self._joined = admitted + fitting, members.stop
            if start + fitting < stop:
                self._flying.appendleft(dataclasses.replace(payload, members=slice(start + fitting, stop)))
                self._deferrals += max(0, stop - max(start + fitting, self._deferred_to))
                self._deferred_to = max(self._deferred_to, stop)
                return first, admitted, True
            payload.buffers.append(now_s)
        return first, admitted, False

    def _fitting(self, members: slice) -> int:
        """How many of these requests there is room for, a token for each row included."""
        rows_left = self._room.rows - self.rows.live
        needed = np.cumsum(self._inputs(members) + 1)
        tokens_left = self._room.tokens - self.rows.tokens - self.rows.live
        fitting = min(rows_left, int(np.searchsorted(needed, tokens_left, side="right")), len(needed))
        if fitting <= 0 and not self.rows.live:
            raise ValueError(f"cache_tokens: too few for a prompt of {needed[0] - 1} tokens; allow more")
        return max(0, fitting)

    def _moments(self) -> Moments:
        done_s = np.array([0.0, *self._done_s])
        own = slice(0, self._handed)
        ends, decode, encoded_s = self._ends[own], self._decode[own], self._encoded_s[own]
        firsts_s = done_s[ends - decode + 1] if self._first_token == "decode" else encoded_s
        return Moments(self._start_s[own], firsts_s, np.where(decode > 0, done_s[ends], encoded_s))
