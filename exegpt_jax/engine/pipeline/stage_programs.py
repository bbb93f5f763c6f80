"""Every program that one of several stages needs for a Plan, as a list of recipes: one per (phase, bucket).

Each decode micro-batch has a part of the cache of its own, of the same shape as all others', so that a stage's programs
serve them all. Keys, values and (on the last stage) counts are donated from program to program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax import Array

from exegpt_jax.engine.call_shapes import decode_shapes
from exegpt_jax.engine.compiling import Recipe
from exegpt_jax.engine.pipeline.stage_steps import StageSteps
from exegpt_jax.engine.programs import SLOTS_PER_CALL, Entry, Key, Recipes
from exegpt_jax.engine.sampling import Counts
from exegpt_jax.engine.state import NO_COUNTS, NO_ROWS, Feed, Rows
from exegpt_jax.sharding.stage import Stage
from solver.plan.micro_batches import decode_parts, part_rows
from solver.plan.plan import Plan


def part_plan(plan: Plan) -> Plan:
    """The plan as one decode micro-batch sees it: its rows are those of its part of the cache."""
    rows = part_rows(plan.schedule.max_rows, decode_parts(plan.schedule))
    schedule = dataclasses.replace(
        plan.schedule,
        max_rows=rows,
        encode_batch=min(plan.schedule.encode_batch, rows),
        decode_batch=min(plan.schedule.decode_batch, rows),
    )
    buckets = dataclasses.replace(plan.buckets, decode_rows=(rows,))
    # Predictions and accounts are lists over all stages, of all rows.
    return dataclasses.replace(plan, schedule=schedule, buckets=buckets, prediction=None, memory=())


class StageRecipes(Recipes):
    """The shapes of a plan's programs on one of its stages; `all` lists them."""

    def __init__(self, stage: Stage, plan: Plan, most_iterations: int = 0) -> None:
        super().__init__(stage, part_plan(plan), most_iterations)
        self._of_all = plan
        part = self._plan
        self._steps: StageSteps = StageSteps(stage, part.cache_dtype, part.cache_tokens, self._room)

    def all(self) -> dict[Key, Recipe]:
        """Recipes by key: ("encode", rows, tokens), ("iterate", rows, tokens) and so on."""
        found = super().all()
        for key, name, function, arguments in (*self._takes(), *self._iterations()):
            found[key] = Recipe(name, function, arguments)
        if not self._cache_spec.layers:
            # An encoder's layers alone: prompts pass through, and nothing is kept.
            found = {key: recipe for key, recipe in found.items() if key[0] == "encode"}
        return {key: dataclasses.replace(recipe, name=f"{recipe.name}, {self._where}") for key, recipe in found.items()}

    @property
    def _where(self) -> str:
        first, end = self._stage.stage.layers
        return f"layers {first} to {end - 1}"

    def _states(self) -> Iterator[Entry]:
        """Rows move from part to part by `take` and `insert`; only the last stage knows who is alive."""
        for entry in super()._states():
            if entry[0] == ("alloc",) or (entry[0] == ("release",) and self._steps.samples):
                yield entry

    def _decodes(self) -> Iterator[Entry]:
        return iter(())

    def payload_shapes(self) -> tuple[tuple[int, int], ...]:
        """Those of prompts, and that of rows on their way to other slots."""
        return (*super().payload_shapes(), (SLOTS_PER_CALL, self._plan.cache_tokens))

    def _takes(self) -> Iterator[Entry]:
        rows = self._plan.schedule.max_rows
        arguments = (self._cache(rows), self._rows(rows), self._ints(SLOTS_PER_CALL))
        placed = self._placed(self._payload(SLOTS_PER_CALL, self._plan.cache_tokens))
        yield ("take",), "take rows", jax.jit(self._steps.take, out_shardings=placed), arguments

    def _encode(self, rows: int, tokens: int) -> Entry:
        key, name, _, (params, *prompts) = super()._encode(rows, tokens)
        x = self._x(rows, tokens)
        if self._steps.samples:
            return key, name, self._passing(self._steps.encode_end, rows, tokens), (params, x, *prompts)
        return key, name, self._passing(self._steps.encode_on, rows, tokens), (params, x, self._ints(rows))

    def _chunk(self, tokens: int, context: int) -> Entry:
        key, name, _, (params, layers, _, start, *rest) = super()._chunk(tokens, context)
        x = self._x(1, tokens)
        if self._steps.samples:
            function = self._passing(self._steps.chunk_end, 1, context, donate=1)
            return key, name, function, (params, layers, x, start, *rest)
        return key, name, self._passing(self._steps.chunk_on, 1, context, donate=1), (params, layers, x, start, start)

    def _passing(
        self, function: Callable[..., object], rows: int, tokens: int, donate: int | None = None
    ) -> jax.stages.Wrapped:
        """A program with a payload, and first tokens or activations."""
        behind = None if self._steps.samples else self._whole
        return jax.jit(
            function,
            donate_argnums=() if donate is None else donate,
            out_shardings=(self._placed(self._payload(rows, tokens)), behind),
        )

    def _iterations(self) -> Iterator[Entry]:
        """For each view, what a phase does to it."""
        whole = self._plan.schedule.max_rows, self._plan.cache_tokens
        begun = set()
        for rows, tokens in self.views():
            yield self._iterate(rows, tokens)
            if self._steps.samples:
                yield self._begin(rows, tokens)
            if (rows, tokens) != whole:
                yield from self._cuts(rows, tokens)
            if self._steps.samples and rows != whole[0] and rows not in begun:
                begun.add(rows)
                keep = jax.jit(self._steps.keep, out_shardings=self._placed(self._rows(whole[0])))
                yield ("keep", rows), f"keep {rows} rows", keep, (self._rows(whole[0]), self._rows(rows))

    def views(self) -> tuple[tuple[int, int], ...]:
        """(rows of a micro-batch, positions) of every decode call."""
        parts = decode_parts(self._of_all.schedule)
        return tuple(sorted({(part_rows(rows, parts), tokens) for rows, tokens in decode_shapes(self._of_all)}))

    def _begin(self, rows: int, tokens: int) -> Entry:
        own, feed = self._rows(rows), self._feed(rows, self._ints(rows, 1))
        function = jax.jit(self._steps.begin, static_argnums=(1, 2), out_shardings=self._placed((own, feed)))
        arguments = (self._rows(self._plan.schedule.max_rows), rows, tokens)
        return ("begin", rows, tokens), f"begin {rows} rows x {tokens} tokens", function, arguments

    def _cuts(self, rows: int, tokens: int) -> Iterator[Entry]:
        held = self._cache_spec.abstract(self._plan.schedule.max_rows, self._plan.cache_tokens)
        view = self._cache_spec.abstract(rows, tokens)
        size = f"{rows} rows x {tokens} tokens"
        cut = jax.jit(self._steps.cut, static_argnums=(1, 2), out_shardings=self._placed(view))
        yield ("cut", rows, tokens), f"cut {size}", cut, (held, rows, tokens)
        back = jax.jit(self._steps.put_back, donate_argnums=0, out_shardings=self._placed(held))
        yield ("put back", rows, tokens), f"put back {size}", back, (held, view, self._ints(rows), self._ints())

    def _iterate(self, rows: int, tokens: int) -> Entry:
        view = self._cache_spec.abstract(rows, tokens)
        feed = self._feed(rows, self._x(rows, 1, first_layer=self._stage.spec.encoder_layers))
        key, name = ("iterate", rows, tokens), f"one iteration of {rows} rows x {tokens} tokens"
        if not self._steps.samples:
            function = jax.jit(
                self._steps.iterate_on, donate_argnums=1, out_shardings=(self._placed(view), self._whole)
            )
            return key, name, function, (self._params, view, feed)
        counts, own = self._counts(self._plan.schedule.max_rows), self._rows(rows)
        kept = self._placed((view, counts, own))
        assert isinstance(kept, tuple)
        function = jax.jit(
            self._steps.iterate_end, donate_argnums=(1, 2), out_shardings=(*kept, self._whole, self._whole)
        )
        return key, name, function, (self._params, view, counts, own, feed)

    # Shapes of arguments.

    def _feed(self, rows: int, x: Array) -> Feed:
        prompts = self._ints(rows) if self._stage.spec.encoder_layers else None
        return Feed(x, self._ints(rows), prompts)

    def _x(self, rows: int, tokens: int, first_layer: int = 0) -> Array:
        """What a stage is given: token ids where it has the first layer to run, or activations of the stage before."""
        if self._stage.stage.layers[0] <= first_layer:
            return self._ints(rows, tokens)
        shape = (rows, tokens, self._stage.spec.hidden_size)
        return self._shape(shape, self._stage.dtype)

    def _counts(self, rows: int) -> Counts:
        return super()._counts(rows) if self._steps.samples else NO_COUNTS

    def _rows(self, rows: int) -> Rows:
        return super()._rows(rows) if self._steps.samples else NO_ROWS
