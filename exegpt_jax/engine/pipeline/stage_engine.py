"""One of several stages at work: calls of its compiled programs on what the stage before handed on.

A stage's slots are cut into parts, one per decode micro-batch, each a `State` of its own. Nothing here waits for the
device; which stage it is shows only in what comes out: activations, or (from the last) first tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from exegpt_jax.engine.api import EncodeCall
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.call_arrays import ChunkArrays, PromptArrays, ints
from exegpt_jax.engine.compiling import Recipe
from exegpt_jax.engine.engine import SlotEngine
from exegpt_jax.engine.pipeline.stage_programs import StageRecipes, part_plan
from exegpt_jax.engine.programs import SLOTS_PER_CALL, Key
from exegpt_jax.engine.sampling import Counts
from exegpt_jax.engine.state import NO_ROWS, Block, Cache, Feed, Payload, Rows, State
from exegpt_jax.sharding.stage import Stage
from solver.plan.plan import Plan


class View(NamedTuple):
    """A micro-batch on this stage while a phase runs.

    Attributes:
      layers: keys and values of its rows, as many positions as are attended to.
      counts: of all rows of its part.
      rows: of the micro-batch.
      held: the part's keys and values, where the view is a copy; None where it is the part itself.
      all_rows: the part's, which `rows` go back into.
    """

    layers: Layers
    counts: Counts
    rows: Rows
    held: Layers | None
    all_rows: Rows


class StageEngine(SlotEngine):
    """One of the plan's stages.

    Args:
      stage: its parameters, on their mesh.
      plan: with all stages.

    Attributes:
      plan: as one part sees it (`part_plan`).
      first, last: whether it embeds, whether it samples.
      decodes: whether it has layers that keep keys and values.
    """

    def __init__(self, stage: Stage, plan: Plan) -> None:
        super().__init__(stage, part_plan(plan))
        self._of_all = plan
        self.first = stage.stage.layers[0] == 0
        self.last = stage.stage.layers[1] == stage.spec.num_layers
        self.decodes = stage.spec.cached_layers(stage.stage.layers) > 0

    def recipes(self) -> dict[Key, Recipe]:
        return StageRecipes(self.stage, self._of_all, self.most_iterations).all()

    # Encode.

    def encode(self, call: EncodeCall, prompts: PromptArrays, x: Array | None) -> tuple[Payload, Array | Block]:
        """Whole prompts of one call; `x` is what the stage before handed on, None on the first."""
        given = prompts.tokens if x is None else x
        rest = tuple(prompts) if self.last else (prompts.lengths,)
        arguments = (self.stage.params, given, *rest)
        payload, out = self._call("encode", call.rows_bucket, call.tokens_bucket, arguments=arguments)
        return payload, out

    def encode_chunk(
        self, call: EncodeCall, chunk: ChunkArrays, layers: Layers | None, x: Array | None
    ) -> tuple[Payload, Array | Block]:
        """The next chunk of one prompt; `layers` (donated) hold what came before it."""
        if layers is None:
            layers = self._call("payload", call.context_bucket)
        given = chunk.tokens if x is None else x
        rest = tuple(chunk[1:]) if self.last else (chunk.start, chunk.lengths)
        arguments = (self.stage.params, layers, given, *rest)
        payload, out = self._call("chunk", call.tokens_bucket, call.context_bucket, arguments=arguments)
        return payload, out

    # Rows from part to part.

    def take(self, state: State, slots: Sequence[int]) -> Payload:
        """Copies of at most SLOTS_PER_CALL rows of a part, to be inserted into any part."""
        where = ints(slots, SLOTS_PER_CALL, self.plan.schedule.max_rows)
        payload: Payload = self._call("take", arguments=(state.cache, state.rows, where))
        return payload

    # Decode: begin, iterate as often as wanted, end.

    def begin(self, state: State, rows: int, length: int) -> tuple[View, Feed | None]:
        """A view of a part's lowest rows; from the last stage also what their first iteration begins with."""
        layers, held = state.cache.layers, None
        if (rows, length) != (self.plan.schedule.max_rows, self.plan.cache_tokens):
            layers, held = self._call("cut", rows, length, arguments=(layers,)), layers
        own, feed = NO_ROWS, None
        if self.last:
            own, feed = self._call("begin", rows, length, arguments=(state.rows,))
        return View(layers, state.cache.counts, own, held, state.rows), feed

    def iterate(self, view: View, feed: Feed) -> tuple[View, Feed, Block | None]:
        """One iteration through this stage; from the last one its tokens, and the next iteration's beginning."""
        rows, length = feed.position.shape[0], view.layers[0][1].shape[2]
        key = ("iterate", rows, length)
        if not self.last:
            layers, out = self._call(*key, arguments=(self.stage.params, view.layers, feed))
            return view._replace(layers=layers), out, None
        layers, counts, own, out, block = self._call(
            *key, arguments=(self.stage.params, view.layers, view.counts, view.rows, feed)
        )
        return view._replace(layers=layers, counts=counts, rows=own), out, block

    def end(self, view: View, first: Array, iterations: int) -> State:
        """The part after so many iterations; `first` are the positions of its rows at the first of them."""
        rows, length = first.shape[0], view.layers[0][1].shape[2]
        layers, all_rows = view.layers, view.rows
        if view.held is not None:
            layers = self._call("put back", rows, length, arguments=(view.held, layers, first, np.int32(iterations)))
        if self.last and rows != self.plan.schedule.max_rows:
            all_rows = self._call("keep", rows, arguments=(view.all_rows, view.rows))
        return State(Cache(layers, view.counts), all_rows)
