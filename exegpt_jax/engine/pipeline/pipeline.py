"""A pipeline: stages on meshes of their own, and the passes that prompts and decode micro-batches make through them.

A pass is dispatched to every stage at once, so the next one can be before this one is done anywhere: stages overlap.
One thread dispatches; how far it may run ahead is bounded (`exegpt_jax.engine.windows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jax import Array

from exegpt_jax.engine.api import EncodeCall, StageWork
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.call_arrays import chunk_of_prompt, whole_prompts
from exegpt_jax.engine.pipeline.stage_engine import StageEngine, View
from exegpt_jax.engine.state import Block, Feed, Payload, State
from exegpt_jax.engine.transfer.links import Links
from exegpt_jax.engine.windows import Mark, Windows
from exegpt_jax.sharding.stage import Stage
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan

# Iterations of each micro-batch that may be under way: while one is computed, the next is on its way.
_PASSES_AHEAD = 2
# So many passes may be under way in any case, or else few micro-batches would leave stages waiting for dispatches.
_LEAST_WINDOW = 4


@dataclasses.dataclass(frozen=True)
class EncodePass:
    """An encode call under way.

    Attributes:
      payloads: of each stage that decodes.
      block: first tokens; None where the last layer is on other devices.
      marks: of each stage.
      x: what goes on to those devices; None where there are none.
    """

    payloads: tuple[Payload, ...]
    block: Block | None
    marks: tuple[Mark, ...]
    x: Array | None = None


@dataclasses.dataclass(frozen=True)
class DecodePass:
    """One iteration of a micro-batch under way.

    Attributes:
      views: of each stage that decodes, behind it.
      feed: what the next one begins with, on its way to the first of them.
      positions: [rows] on each of them, of the tokens that it read.
      block: its tokens.
      marks: of each of them.
    """

    views: tuple[View, ...]
    feed: Feed
    positions: tuple[Array, ...]
    block: Block
    marks: tuple[Mark, ...]


class Pipeline:
    """Warm stages in order.

    Args:
      stages: of one side of the plan, or of all of it.
      plan: as that side sees it.
      clock: for the times of stages.
      window: passes that may be under way; absent: as many as keep the decode micro-batches going.

    Attributes:
      plan: what it runs.
      engines: of the stages.
      decoders: of those that decode, the last ones: stages with an encoder's layers alone do not.
      parts: m_D, decode micro-batches.
      windows: what is under way.
    """

    def __init__(
        self, stages: Sequence[Stage], plan: Plan, clock: Callable[[], float], window: int | None = None
    ) -> None:
        self.plan, self.clock = plan, clock
        self.engines = tuple(StageEngine(stage, plan) for stage in stages)
        self.decoders = tuple(engine for engine in self.engines if engine.decodes)
        self._ahead = len(self.engines) - len(self.decoders)
        self.parts = decode_parts(plan.schedule)
        self._window = window or max(_LEAST_WINDOW, _PASSES_AHEAD * self.parts)
        # Without decoders nothing goes back.
        self._links = Links([stage.mesh for stage in stages], self._ahead if self.decoders else 0)
        self.forget()

    def forget(self) -> None:
        """Nothing is under way any more."""
        self.windows = Windows(len(self.engines), self._window, self.clock)

    def encode(
        self, call: EncodeCall, held: Sequence[Layers] | None, before: Sequence[int], x: Array | None = None
    ) -> EncodePass:
        """Prompts through every stage.

        Of a chunk, `held` (donated) and `before` are what came before it; `x` is what other devices made of prompts.
        """
        self.windows.make_room()
        prompts = None if call.context_bucket else whole_prompts(call)
        chunk = chunk_of_prompt(call, before) if call.context_bucket else None
        payloads, marks = [], []
        for index, engine in enumerate(self.engines):
            began_s = self.clock()
            if chunk is None:
                assert prompts is not None
                payload, out = engine.encode(call, prompts, x)
            else:
                payload, out = engine.encode_chunk(call, chunk, None if held is None else held[index], x)
            if engine.decodes:
                payloads.append(payload)
            if isinstance(out, Block):
                marks.append(self.windows.add(index, began_s, out.tokens))
                return EncodePass(tuple(payloads), out, tuple(marks))
            marks.append(self.windows.add(index, began_s, out))
            x = self._links.ahead[index].carry(out) if index < len(self._links.ahead) else out
        return EncodePass(tuple(payloads), None, tuple(marks), x)

    def begin(self, states: Sequence[State], rows: int, length: int) -> tuple[tuple[View, ...], Feed]:
        """Views of a part's lowest rows on every stage that decodes, and what their first iteration begins with."""
        views = []
        feed: Feed | None = None
        for engine, state in zip(self.decoders, states, strict=True):
            view, feed = engine.begin(state, rows, length)
            views.append(view)
        assert feed is not None
        return tuple(views), self._links.back.feed(feed)

    def iterate(self, views: Sequence[View], feed: Feed) -> DecodePass:
        """One iteration of a micro-batch through every stage that decodes."""
        block: Block | None = None
        after, positions, marks = [], [], []
        for index, (engine, view) in enumerate(zip(self.decoders, views, strict=True), self._ahead):
            began_s = self.clock()
            positions.append(feed.position)
            view, feed, block = engine.iterate(view, feed)
            marks.append(self.windows.add(index, began_s, feed.x if block is None else block.tokens))
            after.append(view)
            feed = (self._links.back if engine.last else self._links.ahead[index]).feed(feed)
        assert block is not None
        return DecodePass(tuple(after), feed, tuple(positions), block, tuple(marks))

    def work(
        self, marks: Sequence[Mark], micro_batch: int, iteration: int, rows: int, tokens: int, shape: tuple[int, int]
    ) -> list[StageWork]:
        """What the stages did in one pass that is done; `shape`: compiled rows and tokens."""
        found = []
        for mark in marks:
            assert mark.ready_s is not None
            tensor = self.engines[mark.stage].stage.mesh.shape["tensor"]
            found.append(
                StageWork(
                    mark.stage, tensor, micro_batch, iteration, rows, tokens, *shape, mark.dispatched_s, mark.ready_s
                )
            )
        return found
