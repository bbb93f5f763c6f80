"""Continuous batching with chunked prefill: every iteration carries the decode rows plus prompt tokens up to a budget.

First every row that decodes gets its token, then prompts that have begun go on, then whoever waits begins, first come
first served, while rows and pages of the cache are free. Where a row needs a page and none is free, whoever was
admitted last is thrown out; it waits in front and is encoded again with what it had generated (vLLM's recomputation),
except what is left of its pages.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np

from solver.plan.micro_batches import decode_parts
from solver.plan.schedule import Schedule
from solver.plan.timeline import Kind, Timeline
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.clock import Clock
from solver.simulate.events.mixed import Chunk, MixedCosts
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.pages import Pages
from solver.simulate.events.queue import Room
from solver.simulate.events.record import Moments, Phase, Totals, Work, note, outcome_of


@dataclasses.dataclass
class Row:
    """An admitted request.

    Attributes:
      number: of the request.
      prompt: tokens to encode: its prompt, and what it had generated when it was thrown out.
      decode: decode iterations that follow; hidden from the policy.
      encoded: prompt tokens done.
      joined: the iteration after which it began to decode; -1 before.
      thrown_out: it was admitted before.
    """

    number: int
    prompt: int
    decode: int
    encoded: int = 0
    joined: int = -1
    thrown_out: bool = False


class ChunkedLoop:
    """One run of one replica of a decoder-only model; arguments as `solver.simulate.events.simulate` has them."""

    def __init__(self, schedule: Schedule, costs: MixedCosts, demand: Demand, room: Room, timeline: Timeline) -> None:
        self._schedule, self._costs, self._demand, self._timeline = schedule, costs, demand, timeline
        self._decode = demand.decode_iterations("encode")
        self._arrival_s = None if demand.arrival_s is None else demand.arrival_s.tolist()
        if not costs.fused and math.isfinite(room.tokens):
            raise ValueError("cache_tokens: pages are counted where rows and chunks share a call; allocate whole rows")
        self._rows = min(room.rows, schedule.most_rows)
        self._pages = Pages(room.tokens, room.page, room.reuse)
        self._clock = Clock(costs.stages, costs.return_s)
        self._parts = decode_parts(schedule)
        self._ready_s = [0.0] * self._parts
        self._next = 0
        self._thrown_out: collections.deque[Row] = collections.deque()
        # Admitted rows in order: those that encode, and all of them (with ended ones, until they come up).
        self._encoding: collections.deque[Row] = collections.deque()
        self._admitted: list[Row] = []
        self._ending: dict[int, list[Row]] = collections.defaultdict(list)
        self._iteration = self._live = 0
        self._tokens = 0
        self._deferred_to = self._deferrals = self._preemptions = 0
        self._phases: list[Phase] = []
        self._start_s, self._first_s, self._last_s = (np.full(len(demand), np.nan) for _ in range(3))

    def run(self) -> Outcome:
        while self._next < len(self._demand) or self._live or self._encoding or self._thrown_out:
            self._step()
        totals = Totals(self._deferrals, self._preemptions, self._clock.busy_s, self._timeline)
        moments = Moments(self._start_s, self._first_s, self._last_s)
        return outcome_of(self._demand, self._phases, moments, int(self._decode.max()), totals)

    def _step(self) -> None:
        now_s = self._now_s()
        preempted = self._make_room()
        budget = max(1, self._schedule.token_budget - self._live)
        chunks = self._chunks(budget)
        budget -= sum(size for _, size in chunks)
        first, deferred = self._next, False
        if not preempted and budget > 0:
            begun, deferred = self._admit(budget, now_s)
            chunks += begun
        before = self._iteration
        live, held = (self._in_one_call if self._costs.fused else self._in_two_calls)(chunks, now_s)
        self._phases.append(
            Phase(now_s, first, self._next - first, before, live, held, self._pages.used_tokens, deferred)
        )

    def _in_one_call(self, chunks: list[tuple[Row, int]], now_s: float) -> tuple[int, int]:
        """Rows and chunks pass the stages together; prompts that are complete decode from the next iteration on."""
        live, held = self._live, self._live + len(self._encoding)
        work = [(size, row.encoded) for row, size in chunks]
        end_s = self._compute(live, self._tokens, work)
        encoded = sum(size for size, _ in work)
        kind: Kind = "decode" if live else "encode"
        entry = Work(kind, live + len(work), live + encoded, 1 if live else 0)
        note(self._timeline, len(self._phases), entry, now_s, self._clock.free_s)
        self._end_iteration(end_s)
        self._join(chunks, end_s)
        return live, held

    def _in_two_calls(self, chunks: list[tuple[Row, int]], now_s: float) -> tuple[int, int]:
        """Chunks are encoded first; prompts that are complete decode in the same iteration."""
        phase, held = len(self._phases), self._live + len(self._encoding)
        if chunks:
            work = [(size, row.encoded) for row, size in chunks]
            end_s = self._compute(0, 0, work)
            encoded = sum(size for size, _ in work)
            note(self._timeline, phase, Work("encode", len(work), encoded), now_s, self._clock.free_s)
            self._join(chunks, end_s)
        live = self._live
        if live:
            start_s = self._ready_s[0]
            end_s = self._compute(live, self._tokens, [])
            note(self._timeline, phase, Work("decode", live, live, 1), start_s, self._clock.free_s)
            self._end_iteration(end_s)
        return live, held

    def _compute(self, rows: int, tokens: int, work: list[Chunk]) -> float:
        """One pass of every micro-batch through the stages; returns when the last is back."""
        times = self._costs.mixed(rows, tokens, work, self._parts)[None]
        done_s = self._clock.decode(times, self._ready_s)[0]
        self._ready_s = done_s.tolist()
        return float(done_s.max())

    def _now_s(self) -> float:
        """When the next iteration begins; idle until somebody comes."""
        now_s = self._ready_s[0]
        idle = not (self._live or self._encoding or self._thrown_out)
        if idle and self._arrival_s is not None and self._arrival_s[self._next] > now_s:
            now_s = self._arrival_s[self._next]
            self._ready_s = [max(ready_s, now_s) for ready_s in self._ready_s]
        return now_s

    def _make_room(self) -> bool:
        """Gives every decoding row the page that its next token may need; whether anybody was thrown out for it."""
        preempted = False
        while not self._pages.grow(self._iteration + 1):
            self._throw_out()
            preempted = True
        return preempted

    def _throw_out(self) -> None:
        """The row admitted last gives its pages back and waits in front."""
        while (row := self._admitted.pop()).joined >= 0 and row.joined + row.decode <= self._iteration:
            pass
        self._preemptions += 1
        if row.joined < 0:
            self._encoding.remove(row)
            self._pages.give_back(row.prompt)
            row = Row(row.number, row.prompt, row.decode, thrown_out=True)
        else:
            generated = self._iteration - row.joined
            self._ending[row.joined + row.decode].remove(row)
            self._live -= 1
            self._tokens -= row.prompt + generated
            self._pages.leave(row.joined, row.prompt)
            self._pages.give_back(row.prompt + generated, row.number)
            row = Row(row.number, row.prompt + generated + 1, row.decode - generated - 1, thrown_out=True)
        if not (self._admitted or self._encoding):
            raise ValueError(f"cache_tokens: too few for one request of {row.prompt} tokens; allow more")
        self._thrown_out.appendleft(row)

    def _chunks(self, budget: int) -> list[tuple[Row, int]]:
        """What prompts that have begun encode next."""
        chunks: list[tuple[Row, int]] = []
        for row in self._encoding:
            size = min(row.prompt - row.encoded, budget)
            if size <= 0:
                break
            chunks.append((row, size))
            budget -= size
        return chunks

    def _admit(self, budget: int, now_s: float) -> tuple[list[tuple[Row, int]], bool]:
        """Lets in whoever waits while the budget lasts; also whether somebody stood back for want of room."""
        chunks: list[tuple[Row, int]] = []
        while budget > 0:
            row = self._thrown_out[0] if self._thrown_out else self._waiting(now_s)
            if row is None:
                return chunks, False
            full = self._live + len(self._encoding) >= self._rows
            found = None if full else self._pages.take(row.prompt, row.number if row.thrown_out else None)
            if found is None:
                self._defer(row, bool(chunks))
                return chunks, True
            if self._thrown_out:
                self._thrown_out.popleft()
            else:
                self._next += 1
                self._start_s[row.number] = now_s
            row.encoded = found
            size = min(row.prompt - found, budget)
            budget -= size
            chunks.append((row, size))
            self._encoding.append(row)
            self._admitted.append(row)
        return chunks, False

    def _waiting(self, now_s: float) -> Row | None:
        """The next request, if it is there."""
        number = self._next
        if number == len(self._demand) or (self._arrival_s is not None and self._arrival_s[number] > now_s):
            return None
        return Row(number, int(self._demand.input_tokens[number]), int(self._decode[number]))

    def _defer(self, row: Row, others: bool) -> None:
        if not (self._live or self._encoding or others):
            raise ValueError(f"cache_tokens: too few for a prompt of {row.prompt} tokens; allow more")
        if row.number >= self._deferred_to:
            self._deferrals += 1
            self._deferred_to = row.number + 1

    def _end_iteration(self, end_s: float) -> None:
        """Every row that decodes has one token more; those that end leave."""
        self._iteration += 1
        for row in self._ending.pop(self._iteration, ()):
            self._last_s[row.number] = end_s
            self._live -= 1
            self._tokens -= row.prompt + row.decode - 1
            self._pages.leave(row.joined, row.prompt)
            self._pages.give_back(row.prompt + row.decode)
        self._tokens += self._live
        while self._admitted and self._ended(self._admitted[-1]):
            self._admitted.pop()

    def _join(self, chunks: list[tuple[Row, int]], end_s: float) -> None:
        """The chunks are encoded; prompts that are complete have their first token and decode."""
        for row, size in chunks:
            row.encoded += size
            if row.encoded < row.prompt:
                continue
            self._encoding.remove(row)
            row.joined = self._iteration
            if np.isnan(self._first_s[row.number]):
                self._first_s[row.number] = end_s
            if row.decode == 0:
                self._last_s[row.number] = end_s
                self._pages.give_back(row.prompt)
                continue
            self._live += 1
            self._tokens += row.prompt
            self._pages.join(self._iteration, row.prompt)
            self._ending[self._iteration + row.decode].append(row)

    def _ended(self, row: Row) -> bool:
        return row.joined >= 0 and row.joined + row.decode <= self._iteration
