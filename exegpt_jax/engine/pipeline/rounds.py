"""The decode part of a phase on a pipeline: every micro-batch N_D times through the stages, in turns.

    iteration 1 of micro-batches 1, 2, ..., iteration 2 of 1, 2, ..., each dispatched as soon as the windows allow

A micro-batch of which nobody is left, as far as its tokens have come back, is dispatched no more.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jax import Array

from exegpt_jax.engine.api import MAX_LOGPROBS, DecodeCall, DecodeResult, Logprobs, StageWork
from exegpt_jax.engine.pipeline.pipeline import Pipeline
from exegpt_jax.engine.pipeline.slots import PipelineSlots
from exegpt_jax.engine.pipeline.stage_engine import View
from exegpt_jax.engine.results import Parts
from exegpt_jax.engine.state import Feed
from exegpt_jax.engine.windows import Mark
from solver.plan.micro_batches import part_rows, place_of


@dataclasses.dataclass(eq=False)
class _MicroBatch:
    """One micro-batch during a phase.

    Attributes:
      part: of the slots.
      views: on each stage.
      feed: what its next iteration begins with.
      tells: log-probabilities are wanted.
      first: on each stage, positions at its first iteration; None before that.
      passes: tokens and marks of each iteration so far.
      looked: passes whose tokens have been looked at.
    """

    part: int
    views: tuple[View, ...]
    feed: Feed
    tells: bool
    first: tuple[Array, ...] | None = None
    passes: list[tuple[Parts, tuple[Mark, ...]]] = dataclasses.field(default_factory=list)
    looked: int = 0

    def is_over(self) -> bool:
        """Whether the tokens that are back say that nobody is left."""
        while self.looked < len(self.passes):
            parts, marks = self.passes[self.looked]
            if marks[-1].ready_s is None:
                return False
            self.looked += 1
            if np.asarray(parts.block.done).all():
                return True
        return False


class DecodeRounds:
    """One phase's iterations.

    Args:
      pipeline: where.
      slots: whose rows; what they hold is borrowed until `finish`.
      call: how many iterations, on which shapes.
    """

    def __init__(self, pipeline: Pipeline, slots: PipelineSlots, call: DecodeCall) -> None:
        self._pipeline, self._slots, self._call = pipeline, slots, call
        self._rows = part_rows(call.rows_bucket, pipeline.parts)
        self._result: DecodeResult | None = None
        telling = {place_of(slot, pipeline.parts)[0] for slot in slots.telling}
        self._all: list[_MicroBatch] = []
        for part in sorted(slots.parts_used()) if call.part is None else [call.part]:
            views, feed = pipeline.begin(slots.borrow(part), self._rows, call.cache_bucket)
            self._all.append(_MicroBatch(part, views, feed, part in telling))
        self._next = collections.deque(self._all)

    def dispatch_what_fits(self) -> None:
        """As many iterations as the windows take, without waiting."""
        while self._next and self._pipeline.windows.has_room():
            self._dispatch_one()

    def _dispatch_one(self) -> None:
        batch = self._next.popleft()
        if len(batch.passes) == self._call.iterations or batch.is_over():
            return
        done = self._pipeline.iterate(batch.views, batch.feed)
        batch.views, batch.feed = done.views, done.feed
        batch.first = batch.first or done.positions
        batch.passes.append((Parts.of(done.block, 1, batch.tells), done.marks))
        self._next.append(batch)

    def finish(self) -> DecodeResult:
        """Dispatches what is left, waits for all of it, and brings back what was borrowed."""
        if self._result is None:
            self.settle()
            self._pipeline.windows.drain()
            self._result = self._read()
        return self._result

    def settle(self) -> None:
        """Dispatches what is left and brings back what was borrowed: where iterations are few, without waiting."""
        while self._next:
            self._pipeline.windows.make_room()
            self._dispatch_one()
        for batch in self._all:
            self._bring_back(batch)

    def result(self) -> DecodeResult:
        """Waits for these iterations alone, once they are settled."""
        for batch in self._all:
            self._pipeline.windows.wait_for(batch.passes[-1][1][-1])
        return self._read()

    def _bring_back(self, batch: _MicroBatch) -> None:
        assert batch.first is not None
        stages = zip(self._pipeline.decoders, batch.views, batch.first, strict=True)
        states = [engine.end(view, first, len(batch.passes)) for engine, view, first in stages]
        self._slots.bring_back(batch.part, states)

    def _read(self) -> DecodeResult:
        """The block of all micro-batches, as the Runner counts rows."""
        rows, parts = self._call.rows_bucket, self._pipeline.parts
        shape = (self._call.iterations, rows)
        tokens, counts = np.zeros((*shape, 1), np.int32), np.zeros(shape, np.int32)
        done = np.ones(rows, np.bool_)
        logprobs = None
        if any(batch.tells for batch in self._all):
            wide = (*shape, MAX_LOGPROBS)
            logprobs = Logprobs(np.zeros(shape, np.float32), np.zeros(wide, np.int32), np.zeros(wide, np.float32))
        work: list[StageWork] = []
        for batch in self._all:
            own = slice(batch.part, rows, parts)
            count = len(range(*own.indices(rows)))
            for iteration, (block, marks) in enumerate(batch.passes):
                tokens[iteration, own] = np.asarray(block.block.tokens)[0, :count]
                counts[iteration, own] = np.asarray(block.block.counts)[0, :count]
                done[own] = np.asarray(block.block.done)[:count]
                alive = int(counts[iteration, own].sum())
                shape_of_call = self._rows, self._call.cache_bucket
                work += self._pipeline.work(marks, batch.part, iteration, alive, alive, shape_of_call)
                told = block.logprobs()
                if logprobs is not None and told is not None:
                    logprobs.chosen[iteration, own] = told.chosen[0, :count]
                    logprobs.top_ids[iteration, own] = told.top_ids[0, :count]
                    logprobs.top[iteration, own] = told.top[0, :count]
        return DecodeResult(tokens, counts, done, logprobs, tuple(work))
