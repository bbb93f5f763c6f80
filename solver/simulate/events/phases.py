"""Policies whose stages encode and decode in turns: rra, static, dsi, iteration.

    who waits -> what the policy wants -> what fits -> encode -> N_D iterations -> who has ended makes room -> again

The loop follows the Runner's. It knows when each row will end, to make it end then; the policy sees counts alone.
"""

from __future__ import annotations

import math

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.correction import deferrals_after, most_encoded
from solver.plan.micro_batches import decode_parts
from solver.plan.schedule import Schedule
from solver.plan.timeline import Timeline
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.clock import Clock
from solver.simulate.events.costs import Costs, DecodePhase
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.policies import Wish, wish
from solver.simulate.events.queue import Queue, Room
from solver.simulate.events.record import Moments, Phase, Totals, Work, note, outcome_of
from solver.simulate.events.rows import Rows, context
from solver.simulate.points import Conditions


class PhaseLoop:
    """One run of one replica.

    Args:
      schedule: its policy alternates phases.
      costs: of the one pipeline.
      demand: everybody who asks.
      conditions: compaction and delivery.
      room: rows and tokens of the cache.
      first_token, corrected, barrier: as `solver.simulate.events.simulate` has them.
      timeline: gets the entries.
    """

    def __init__(
        self,
        schedule: Schedule,
        costs: Costs,
        demand: Demand,
        conditions: Conditions,
        room: Room,
        first_token: str,
        corrected: bool,
        barrier: bool,
        timeline: Timeline,
    ) -> None:
        self._schedule, self._costs, self._demand, self._conditions = schedule, costs, demand, conditions
        self._first_token, self._corrected, self._barrier, self._timeline = first_token, corrected, barrier, timeline
        # Decode iterations of each request, hidden from the policy.
        self._decode = demand.decode_iterations(first_token)
        self._parts = decode_parts(schedule)
        self._clock = Clock(costs.stages, costs.return_s)
        self._rows = Rows()
        self._queue, self._room = Queue(demand, room), room
        self._deferrals = 0
        self._phases: list[Phase] = []
        # Rows that have ended in the phase before, of which the runner hears a phase late.
        self._unheard = 0
        # Rows of a batch that is not compacted (whose slots, whose tokens on average).
        self._batch = self._slots = 0
        self._batch_context = 0.0
        # When each phase's tokens and each iteration's tokens (per micro-batch) are known, and each request's moments.
        self._phase_end_s: list[float] = []
        self._iteration_end_s: list[Floats] = []
        self._encode_end_s = np.zeros(len(demand))
        self._encode_start_s = np.zeros(len(demand))
        self._ends = np.zeros(len(demand), np.int64)

    def run(self) -> Outcome:
        while self._queue.left or self._rows.live or self._unheard:
            self._phase()
        totals = Totals(self._queue.deferrals, 0, self._clock.busy_s, self._timeline)
        return outcome_of(self._demand, self._phases, self._moments(), int(self._decode.max()), totals)

    def _phase(self) -> None:
        rows, late = self._rows, self._conditions.delivery == "phase+1"
        held = rows.live + self._unheard
        now_s = self._clock.idle_s if self._barrier else self._clock.free_s[0]
        if not held:
            now_s = max(now_s, self._queue.next_arrival_s)
            self._clock.hold(now_s)
        elif self._barrier:
            self._clock.hold(now_s)
        waiting = self._queue.waiting(now_s)
        ahead = self._queue.ahead(min(waiting, most_encoded(self._schedule)))
        wanted = wish(self._schedule, waiting, held, self._corrected, ahead, self._deferrals)
        self._deferrals = deferrals_after(self._deferrals, waiting, self._room.rows - held, wanted.admit)
        growth = min(wanted.iterations, self._schedule.decode_iterations)
        first, admitted, deferred = self._queue.take(
            wanted.admit, held, rows.tokens + held * growth, growth, alone=not held
        )
        members = slice(first, first + admitted)
        before = rows.iteration
        encoded_s = self._encode(members, now_s)
        self._ends[members] = rows.join(self._demand.input_tokens[members], self._decode[members])
        live, held = rows.live, held + admitted
        most_tokens = self._run_decode(wanted, held, encoded_s, admitted)
        self._unheard = live - rows.live if late else 0
        if not rows.live:
            self._batch = self._slots = 0
        self._phases.append(Phase(now_s, first, admitted, before, live, held, most_tokens, deferred))

    def _encode(self, members: slice, now_s: float) -> list[float]:
        """Encodes the admitted; returns when each micro-batch is ready."""
        inputs = self._demand.input_tokens[members]
        if not len(inputs):
            return []
        parts = math.ceil(len(inputs) / self._schedule.encode_micro_batch)
        ready_s = self._clock.encode(self._costs.encode(inputs, parts), now_s)
        self._encode_start_s[members] = now_s
        self._encode_end_s[members] = ready_s[-1]
        work = Work("encode", len(inputs), int(inputs.sum()))
        note(self._timeline, len(self._phases), work, now_s, self._clock.free_s)
        return ready_s

    def _run_decode(self, wanted: Wish, held: int, encoded_s: list[float], new: int) -> float:
        """The decode part; returns the most tokens that were in use."""
        rows, iterations = self._rows, wanted.iterations
        if not rows.live:
            # Nobody decodes: everything that was admitted ended with its first token, or is waited for.
            self._phase_end_s.append(self._clock.idle_s)
            return rows.tokens
        live, tokens = rows.ahead(iterations)
        iterations = int(np.count_nonzero(live))
        live, tokens = live[:iterations], tokens[:iterations]
        phase = self._decode_phase(wanted, held, live, tokens)
        start_s = self._clock.idle_s if self._barrier else self._clock.free_s[0]
        if self._barrier or not encoded_s:
            ready_s = [start_s + self._costs.phase_s] * phase.parts
        else:
            ready_s = self._ready_in_turn(phase.parts, encoded_s, int(live[0]), new)
        done_s = self._clock.decode(self._costs.decode(phase), ready_s)
        self._iteration_end_s.append(self._per_place(done_s))
        self._phase_end_s.append(float(done_s[-1].max()))
        if self._barrier:
            self._clock.hold(self._phase_end_s[-1])
        rows.run(iterations)
        work = Work("decode", int(live[0]), int(live.sum()), iterations)
        note(self._timeline, len(self._phases), work, start_s, self._clock.free_s)
        return float((tokens + live).max())

    def _decode_phase(self, wanted: Wish, held: int, live: Ints, tokens: Floats) -> DecodePhase:
        """What is computed: live rows, or with compaction by phase all that were there when it started."""
        computed = live
        attended: Floats = context(live, tokens)
        if wanted.compact and self._conditions.compaction == "phase":
            # Rows that end run on to the end of the phase.
            computed = np.full_like(live, int(live[0]))
            attended = attended[0] + np.arange(len(live))
        elif not wanted.compact:
            # They run on to the end of the batch.
            if not self._batch:
                self._batch, self._batch_context = int(live[0]), float(attended[0])
            computed = np.full_like(live, self._batch)
            attended = np.arange(len(live), dtype=np.float64) + self._batch_context
            self._batch_context += len(live)
        self._slots = held if wanted.compact else max(self._slots, held)
        iterations, reach = self._reach(wanted.iterations)
        return DecodePhase(
            rows=computed,
            context=attended,
            parts=min(self._parts, int(computed[0])),
            dispatched=iterations,
            held=self._slots,
            reach=reach,
        )

    def _reach(self, iterations: int) -> tuple[int, int]:
        """Iterations worth asking for and positions of the longest row behind them, as the runner counts both.

        It allows every answer as many tokens as the longest has. Without costs that ask for it, the reach is 0.
        """
        if not self._costs.most_decode:
            return iterations, 0
        admitted = slice(self._queue.oldest(self._ends, self._rows.iteration), self._queue.next)
        live = self._ends[admitted] > self._rows.iteration
        behind = self._rows.iteration - (self._ends[admitted] - self._decode[admitted])[live]
        left = self._costs.most_decode - behind
        iterations = min(iterations, int(left.max()))
        reach = self._demand.input_tokens[admitted][live] + behind + np.minimum(iterations, left)
        return iterations, int(reach.max())

    def _ready_in_turn(self, parts: int, encoded_s: list[float], live: int, new: int) -> list[float]:
        """No barrier: old rows go first, micro-batches with new rows follow when those are encoded."""
        old = live - min(new, live)
        last_row = (np.arange(1, parts + 1) * live) // parts
        share = np.clip((last_row - old) / max(1, live - old), 0.0, 1.0)
        which = np.ceil(share * len(encoded_s)).astype(int)
        return [0.0 if index == 0 else encoded_s[index - 1] + self._costs.phase_s for index in which]

    def _per_place(self, done_s: Floats) -> Floats:
        """float64 [N, planned micro-batches]: a phase of fewer micro-batches fills the rest with its last."""
        missing = self._parts - done_s.shape[1]
        return done_s if not missing else np.pad(done_s, ((0, 0), (0, missing)), mode="edge")

    def _moments(self) -> Moments:
        """Every request's times, read from the diary: it is known in which iteration each ended."""
        if not self._iteration_end_s:
            return Moments(self._encode_start_s, self._encode_end_s, self._encode_end_s)
        decodes = self._decode > 0
        firsts = self._ends - self._decode + 1
        tokens_s = np.concatenate(self._iteration_end_s)
        lasts_s = np.where(decodes, self._delivered_s(self._ends, tokens_s), self._encode_end_s)
        first_s = self._encode_end_s
        if self._first_token == "decode":
            first_s = self._delivered_s(firsts, tokens_s)
        return Moments(self._encode_start_s, first_s, lasts_s)

    def _delivered_s(self, iteration: Ints, tokens_s: Floats) -> Floats:
        """float64 [requests]: when the token of each request's `iteration` (from 1) reaches who asked."""
        iteration = np.maximum(iteration, 1)
        if self._conditions.delivery == "iteration":
            return tokens_s[iteration - 1, np.arange(len(iteration)) % self._parts]
        began = np.array([phase.iteration for phase in self._phases])
        # The phase that contains it: the last one that began before it and ran any iteration.
        phase = np.searchsorted(began, iteration - 1, side="right") - 1
        late = 1 if self._conditions.delivery == "phase+1" else 0
        return np.array(self._phase_end_s)[np.minimum(phase + late, len(self._phase_end_s) - 1)]
