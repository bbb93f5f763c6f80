"""Every program that a Plan can reach, as a list of recipes: one per (phase, bucket).

The schedule fixes the buckets, so the list is short and known before the first request; once it is compiled, nothing
is any more. The cache is donated from program to program, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jax.typing import DTypeLike

from exegpt_jax.engine.cache import CacheSpec
from exegpt_jax.engine.call_shapes import chunk_contexts, chunk_tokens, decode_shapes
from exegpt_jax.engine.compiling import Recipe
from exegpt_jax.engine.sampling import Counts, SamplingRows, pack
from exegpt_jax.engine.state import Cache, Payload, Rows
from exegpt_jax.engine.steps import Steps
from exegpt_jax.sharding.stage import Stage
from solver.plan.plan import Plan

# Slots released or moved by one dispatch; more take several.
SLOTS_PER_CALL = 8

Shape = ShapeDtypeStruct
Key = tuple[object, ...]
Entry = tuple[Key, str, Wrapped, tuple[object, ...]]


class Recipes:
    """The shapes of a plan's programs on one stage; `all` lists them.

    Args:
      stage: of the plan.
      plan: its schedule fixes the buckets.
      most_iterations: that a decode call has room for; the plan's N_D at least.
    """

    def __init__(self, stage: Stage, plan: Plan, most_iterations: int = 0) -> None:
        self._stage, self._plan = stage, plan
        self._room = max(plan.schedule.decode_iterations, most_iterations)
        self._steps = Steps(stage, plan.cache_dtype, plan.cache_tokens, self._room)
        self._cache_spec = CacheSpec.of(stage, plan.cache_dtype)
        self._whole = NamedSharding(stage.mesh, PartitionSpec())
        self._vocab = stage.spec.padded_vocab(stage.stage.tensor)
        self._params = tuple(Shape(p.shape, p.dtype, sharding=p.sharding) for p in stage.params)

    def all(self) -> dict[Key, Recipe]:
        """Recipes by key: ("encode", rows, tokens), ("decode", rows, tokens) and so on."""
        found: dict[Key, Recipe] = {}
        for key, name, function, arguments in (
            *self._states(),
            *self._encodes(),
            *self._chunks(),
            *self._inserts(),
            *self._decodes(),
        ):
            found[key] = Recipe(name, function, arguments)
        return found

    def _states(self) -> Iterator[Entry]:
        rows = self._plan.schedule.max_rows
        cache, state = self._cache(rows), self._rows(rows)
        placed = jax.tree.map(lambda shape: shape.sharding, (cache, state))
        alloc = jax.jit(lambda: self._steps.alloc(rows), out_shardings=placed)
        yield ("alloc",), f"allocate {rows} rows", alloc, ()
        some = self._ints(SLOTS_PER_CALL)
        yield ("release",), "release", jax.jit(self._steps.release, out_shardings=placed[1]), (state, some)
        move = jax.jit(self._steps.move, donate_argnums=0, out_shardings=placed)
        yield ("move",), "move", move, (cache, state, some, some)

    def resize(self, before: int) -> Recipe:
        """A state of `before` rows as one of this plan's, the lowest rows kept; both are there at once."""
        rows = self._plan.schedule.max_rows
        kept = min(before, rows)

        def resized(cache: Cache, state: Rows) -> tuple[Cache, Rows]:
            return jax.tree.map(lambda new, old: new.at[:kept].set(old[:kept]), self._steps.alloc(rows), (cache, state))

        placed = self._placed((self._cache(rows), self._rows(rows)))
        arguments = (self._cache(before), self._rows(before))
        return Recipe(f"resize {before} to {rows} rows", jax.jit(resized, out_shardings=placed), arguments)

    def _encodes(self) -> Iterator[Entry]:
        for rows in self._plan.buckets.encode_rows:
            for tokens in self._plan.buckets.encode_tokens:
                yield self._encode(rows, tokens)

    def _encode(self, rows: int, tokens: int) -> Entry:
        ints = self._ints(rows)
        arguments = (self._params, self._ints(rows, tokens), ints, ints, self._wanted(rows))
        function = jax.jit(self._steps.encode, out_shardings=(self._placed(self._payload(rows, tokens)), None))
        return ("encode", rows, tokens), f"encode {rows} rows x {tokens} tokens", function, arguments

    def _chunks(self) -> Iterator[Entry]:
        for context in chunk_contexts(self._plan):
            layers = self._cache_spec.abstract(1, context)
            alloc = jax.jit(
                lambda context=context: self._steps.alloc_payload(context), out_shardings=self._placed(layers)
            )
            yield ("payload", context), f"allocate a prompt of {context} tokens", alloc, ()
            for tokens in chunk_tokens(self._plan, context):
                yield self._chunk(tokens, context)

    def _chunk(self, tokens: int, context: int) -> Entry:
        one = self._ints(1)
        arguments = (
            self._params,
            self._cache_spec.abstract(1, context),
            self._ints(1, tokens),
            one,
            self._ints(1, context),
            one,
            one,
            self._wanted(1),
        )
        placed = self._placed(self._payload(1, context))
        function = jax.jit(self._steps.encode_chunk, donate_argnums=1, out_shardings=(placed, None))
        return ("chunk", tokens, context), f"encode a chunk of {tokens} of {context} tokens", function, arguments

    def _inserts(self) -> Iterator[Entry]:
        rows = self._plan.schedule.max_rows
        cache, state = self._cache(rows), self._rows(rows)
        for new, tokens in self.payload_shapes():
            function = jax.jit(self._steps.insert, donate_argnums=0, out_shardings=self._placed((cache, state)))
            arguments = (cache, state, self._payload(new, tokens), self._ints(new))
            yield ("insert", new, tokens), f"insert {new} rows x {tokens} tokens", function, arguments

    def _decodes(self) -> Iterator[Entry]:
        most = self._plan.schedule.max_rows
        cache, state = self._cache(most), self._rows(most)
        for rows, tokens in decode_shapes(self._plan):
            function = jax.jit(
                self._steps.decode,
                donate_argnums=1,
                static_argnums=(4, 5),
                out_shardings=(self._placed(cache), self._placed(state), None),
            )
            arguments = (self._params, cache, state, self._ints(), rows, tokens)
            yield ("decode", rows, tokens), f"decode {rows} rows x {tokens} tokens", function, arguments

    def payload_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, positions) of every payload that encode programs make."""
        buckets = self._plan.buckets
        shapes = {(new, tokens) for new in buckets.encode_rows for tokens in buckets.encode_tokens}
        return tuple(sorted(shapes | {(1, context) for context in chunk_contexts(self._plan)}))

    # Shapes of arguments, which stand for the arrays in the records that programs take.

    def _shape(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return cast(Array, Shape(shape, jnp.dtype(dtype), sharding=self._whole))

    def _ints(self, *shape: int) -> Array:
        return self._shape(shape, jnp.int32)

    def _wanted(self, rows: int) -> SamplingRows:
        return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=self._whole), pack((), rows))

    def _rows(self, rows: int) -> Rows:
        ints = self._ints(rows)
        return Rows(ints, ints, ints, self._shape((rows,), jnp.bool_), self._wanted(rows))

    def _counts(self, rows: int) -> Counts:
        return Counts(self._ints(rows, self._vocab), self._shape((rows, self._vocab), jnp.bool_))

    def _cache(self, rows: int) -> Cache:
        return Cache(self._cache_spec.abstract(rows, self._plan.cache_tokens), self._counts(rows))

    def _payload(self, rows: int, tokens: int) -> Payload:
        return Payload(self._cache_spec.abstract(rows, tokens), self._counts(rows), self._rows(rows))

    def _placed(self, shapes: object) -> object:
        return jax.tree.map(lambda shape: shape.sharding, shapes)
