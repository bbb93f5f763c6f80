"""What is on the devices, and the next phase in words: admit, release, compact, encode, decode.

The Batch knows which request sits in which slot and whose prompt is half encoded. It turns a policy's decision into one
`PhaseCommand`; it neither talks to an Executor nor to who asked.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools

from exegpt_jax.engine.api import DecodeCall, PhaseCommand
from exegpt_jax.runner.calls import encode_calls
from exegpt_jax.runner.compaction import Repacking, pays
from exegpt_jax.runner.policies import POLICIES, Decision, View
from exegpt_jax.runner.rows import Row, Slots
from solver.plan.buckets import attended_tokens, round_up
from solver.plan.correction import deferrals_after, most_encoded
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from solver.plan.timeline import Predictor

Queue = collections.OrderedDict[int, Row]
"""Waiting rows by number, in order of arrival."""


class Batch:
    """The admitted rows of one plan. Used by the Runner's thread alone.

    Attributes:
      slots: rows whose prompt is encoded, by slot.
      encoding: admitted rows whose prompt is not wholly encoded, by number, in order of arrival.
      schedule: in force: the plan's, or its neighbour that the traffic asks for.
      holding: nobody is admitted, since another plan is to take over.
      predictor: of phases, by the profile: rows are re-packed where that pays; None: wherever they can be.
    """

    def __init__(self, plan: Plan) -> None:
        self.holding = False
        self.predictor: Predictor | None = None
        self._take(plan)
        self._clear()

    def _take(self, plan: Plan) -> None:
        if plan.schedule.policy not in POLICIES:
            raise ValueError(
                f"policy: {plan.schedule.policy!r} is not executed yet; choose one of {', '.join(POLICIES)}"
            )
        self._plan = plan
        self.schedule: Schedule = plan.schedule
        self._decide = POLICIES[plan.schedule.policy]

    def _clear(self) -> None:
        self.slots = Slots(self._plan.schedule.most_rows)
        self.encoding: dict[int, Row] = {}
        self._to_release: list[int] = []
        self._to_drop: list[int] = []
        # Rows that decode keeps computing though some have ended, where a policy does not compact.
        self._held = 0
        self._deferrals = 0

    @property
    def rows(self) -> list[Row]:
        """Everybody on the devices."""
        return [*self.slots.rows.values(), *self.encoding.values()]

    def free(self, row: Row) -> None:
        """The row has ended; the devices hear of it with the next phase."""
        if row.slot is not None:
            self._to_release.append(row.slot)
            self.slots.give_back(row.slot)
        elif self.encoding.pop(row.number, None) is not None and row.encoded:
            self._to_drop.append(row.number)

    def forget(self) -> None:
        """The devices have lost everything."""
        self._clear()

    def can_give_way(self, most_rows: int, *, carried: bool) -> bool:
        """Whether a plan of so many rows at once can take over now: with those that are here, or only without any."""
        if not carried:
            return not self.rows
        return not self.encoding and len(self.slots.rows) <= most_rows

    def settle(self, phase: int, most_rows: int) -> PhaseCommand | None:
        """What the devices have to hear before another plan takes over: ends, and rows that must move below
        `most_rows`.
        """
        moves = self.slots.compact(most_rows) if self.slots.highest > most_rows else ()
        release, self._to_release = tuple(self._to_release), []
        drop, self._to_drop = tuple(self._to_drop), []
        return PhaseCommand(phase, drop, release, moves) if release or drop or moves else None

    def go_on_under(self, plan: Plan) -> None:
        """Another plan takes over, with the rows that are here."""
        self._take(plan)
        self.slots = self.slots.resized(plan.schedule.most_rows)
        self._held = self.slots.highest
        self.holding = False

    def next_command(self, phase: int, waiting: Queue, now_s: float) -> PhaseCommand | None:
        """Admits rows from `waiting` as the policy says and puts the phase into words; None if nothing is to do."""
        promised = len(self.encoding)
        live = len(self.slots.rows)
        self._held = self._held if live else 0
        free = self.slots.free - promised
        first = itertools.islice(waiting.values(), most_encoded(self.schedule))
        prompts = tuple(len(row.source_ids) for row in first)
        decision = self._decide(self.schedule, View(len(waiting), promised, live, free, prompts, self._deferrals))
        if self.holding:
            decision = dataclasses.replace(decision, admit=0)
        self._deferrals = deferrals_after(self._deferrals, len(waiting), free, decision.admit)
        expected = live + promised + decision.admit
        moves = self._compact(expected, phase, decision.iterations) if decision.compact else ()
        for _ in range(decision.admit):
            number, row = waiting.popitem(last=False)
            self.encoding[number] = row
        calls = encode_calls(self.encoding.values(), self.slots, self._plan.buckets, decision.prompt_tokens, now_s)
        self.encoding = {number: row for number, row in self.encoding.items() if row.slot is None}
        release, self._to_release = tuple(self._to_release), []
        drop, self._to_drop = tuple(self._to_drop), []
        decode = self._decode_call(decision)
        if not (calls or release or drop or decode):
            return None
        return PhaseCommand(phase, drop, release, moves, calls, decode)

    def _compact(self, expected: int, phase: int = 0, iterations: int = 1) -> tuple[tuple[int, int], ...]:
        """Moves rows down if all that will be live then, `expected`, fit a smaller bucket, and that pays."""
        ladder = self._plan.buckets.decode_rows
        if expected == 0 or self.slots.highest == 0:
            return ()
        rows, smaller = round_up(self.slots.highest, ladder), round_up(expected, ladder)
        moves = sum(slot >= smaller for slot in self.slots.rows)
        if rows <= smaller or not moves:
            return ()
        reach = max(row.cached_tokens + 1 + min(iterations, row.remaining_tokens) for row in self.slots.rows.values())
        reach = min(reach, self._plan.cache_tokens)
        choice = Repacking(phase, rows, smaller, moves, iterations, reach)
        return self.slots.compact(smaller) if pays(choice, self._plan, self.predictor) else ()

    def _decode_call(self, decision: Decision) -> DecodeCall | None:
        """The smallest bucket with every live row; as many iterations as anybody can still use."""
        rows = [row for row in self.slots.rows.values() if row.remaining_tokens > 0]
        behind_encode = self._plan.first_token == "encode"
        # A row whose first token comes out of this phase's encode part has not counted it yet.
        fresh = [behind_encode and row.last_token_s == 0.0 for row in rows]
        left = [row.remaining_tokens - new for row, new in zip(rows, fresh, strict=True)]
        iterations = min(decision.iterations, max(left, default=0))
        if iterations <= 0:
            return None
        reach = max(
            row.cached_tokens + new + min(iterations, own) for row, new, own in zip(rows, fresh, left, strict=True)
        )
        # A decoder that begins with a start token holds it besides the tokens that it has told.
        reach += not behind_encode
        self._held = self.slots.highest if decision.compact else max(self._held, self.slots.highest)
        buckets = self._plan.buckets
        rows_bucket = round_up(self._held, buckets.decode_rows)
        all_rows = rows_bucket == buckets.decode_rows[-1]
        return DecodeCall(iterations, rows_bucket, attended_tokens(reach, iterations, all_rows, buckets.cache_tokens))
