"""The Engine: `encode`, `insert`, `decode`, `release`, `move` over one stage, as calls of compiled programs.

State is explicit: each call takes it and returns what it has become; the cache inside is donated, so the old state must
not be used again. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from exegpt_jax.engine.api import EncodeCall, EngineError
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.call_arrays import chunk_of_prompt, ints, whole_prompts
from exegpt_jax.engine.compiling import Program, Recipe, compile_all
from exegpt_jax.engine.programs import SLOTS_PER_CALL, Key, Recipes
from exegpt_jax.engine.state import Block, Payload, State
from exegpt_jax.sharding.stage import Stage
from solver.plan.plan import Plan

# Kinds of programs that touch no slot of the cache; and those with room for the decode iterations of a phase.
_WITHOUT_SLOTS = ("encode", "chunk", "payload")
_WITH_ITERATIONS = ("decode", "put back")
# Room of decode programs, in times of an N_D that follows the lengths of answers: plans for longer ones find it there.
_ROOM = 2


def _silent(name: str, done: int, total: int) -> None:
    pass


class SlotEngine:
    """A stage, the programs of a plan on it, and its slots.

    Args:
      most_iterations: that a decode call has room for, at least the plan's N_D; None: some more than that where N_D
        follows lengths.

    Attributes:
      stage: parameters on their mesh.
      plan: what it was compiled for.
      most_iterations: as above.
      programs: every executable, once `warm_up` has run.
      compiled: how many of them it compiled.
    """

    def __init__(self, stage: Stage, plan: Plan, most_iterations: int | None = None) -> None:
        self.stage = stage
        self.plan = plan
        self.most_iterations = most_iterations or _room(plan)
        self.programs: tuple[Program, ...] = ()
        self.compiled = 0
        self._run: dict[tuple[object, ...], Program] = {}

    def warm_up(
        self,
        progress: Callable[[str, int, int], None] = _silent,
        kinds: Container[str] | None = None,
        before: SlotEngine | None = None,
    ) -> tuple[Program, ...]:
        """Compiles every program that the plan can reach; afterwards nothing compiles any more.

        Args:
          progress: called with a program's name, how many are done, and how many there are.
          kinds: only these (a measurement needs few).
          before: warm, for another plan on the same stage: programs that are alike are taken from it.
        """
        recipes = {key: recipe for key, recipe in self.recipes().items() if kinds is None or key[0] in kinds}
        known = {} if before is None else before._alike(self)
        absent = [key for key in recipes if key not in known]
        compiled = compile_all([recipes[key] for key in absent], progress)
        known |= dict(zip(absent, compiled, strict=True))
        self._run = {key: known[key] for key in recipes}
        self.programs, self.compiled = tuple(self._run.values()), len(absent)
        return self.programs

    def _alike(self, following: SlotEngine) -> dict[tuple[object, ...], Program]:
        """The programs that another's of the same keys would equal: all but those in which what differs stands."""
        mine, other = self.plan, following.plan
        for name in ("cache_tokens", "max_prompt_tokens", "dtype", "cache_dtype"):
            if getattr(mine, name) != getattr(other, name):
                return {}
        if mine.schedule.max_rows != other.schedule.max_rows:
            return {key: program for key, program in self._run.items() if key[0] in _WITHOUT_SLOTS}
        if self.most_iterations != following.most_iterations:
            return {key: program for key, program in self._run.items() if key[0] not in _WITH_ITERATIONS}
        return dict(self._run)

    def recipes(self) -> dict[Key, Recipe]:
        """All that may be compiled, by key."""
        return Recipes(self.stage, self.plan, self.most_iterations).all()

    def initial_state(self) -> State:
        """An empty cache."""
        return State(*self._call("alloc"))

    def insert(self, state: State, payload: Payload, slots: Sequence[int], length: int) -> State:
        """Puts the payload's rows into slots; `length` is the payload's, in positions."""
        bucket = payload.layers[0][1].shape[0]
        where = ints(slots, bucket, self.plan.schedule.max_rows)
        return State(*self._call("insert", bucket, length, arguments=(state.cache, state.rows, payload, where)))

    def release(self, state: State, slots: Sequence[int]) -> State:
        """Ends rows."""
        rows = state.rows
        for some in batches(slots):
            where = ints(some, SLOTS_PER_CALL, self.plan.schedule.max_rows)
            rows = self._call("release", arguments=(rows, where))
        return State(state.cache, rows)

    # Any: what a program returns is its own.
    def _call(self, *key: object, arguments: tuple[object, ...] = ()) -> Any:
        program = self._run.get(key)
        if program is None:
            raise EngineError(
                f"no program {' '.join(map(str, key))}; the plan does not reach it, or warm_up did not run"
            )
        return program.run(*arguments)


def _room(plan: Plan) -> int:
    iterations = plan.schedule.decode_iterations
    return min(_ROOM * iterations, max(iterations, plan.cache_tokens)) if plan.schedule.policy == "rra" else iterations


class Engine(SlotEngine):
    """One stage with the whole model: attributes as in `SlotEngine`."""

    def encode(self, call: EncodeCall) -> tuple[Payload, Block]:
        """Whole prompts of one call, padded to its buckets."""
        arguments = (self.stage.params, *whole_prompts(call))
        payload, block = self._call("encode", call.rows_bucket, call.tokens_bucket, arguments=arguments)
        return payload, block

    def encode_chunk(self, call: EncodeCall, layers: Layers | None, history: Sequence[int]) -> tuple[Payload, Block]:
        """The next chunk of one prompt; `layers` (donated) and `history` are what came before it."""
        if layers is None:
            layers = self._call("payload", call.context_bucket)
        arguments = (self.stage.params, layers, *chunk_of_prompt(call, history))
        payload, block = self._call("chunk", call.tokens_bucket, call.context_bucket, arguments=arguments)
        return payload, block

    def decode(self, state: State, iterations: int, rows_bucket: int, cache_bucket: int) -> tuple[State, Block]:
        """At most `iterations` tokens for each active row among the lowest `rows_bucket`, in one dispatch."""
        if iterations > self.most_iterations:
            raise EngineError(f"{iterations} iterations exceed the {self.most_iterations} that there is room for")
        arguments = (self.stage.params, state.cache, state.rows, np.int32(iterations))
        cache, rows, block = self._call("decode", rows_bucket, cache_bucket, arguments=arguments)
        return State(cache, rows), block

    def move(self, state: State, moves: Sequence[tuple[int, int]]) -> State:
        """Carries rows to other slots."""
        cache, rows = state
        beyond = self.plan.schedule.max_rows
        for some in batches(moves):
            sources = ints([source for source, _ in some], SLOTS_PER_CALL, beyond)
            targets = ints([target for _, target in some], SLOTS_PER_CALL, beyond)
            cache, rows = self._call("move", arguments=(cache, rows, sources, targets))
        return State(cache, rows)


def batches(values: Sequence) -> list[Sequence]:
    """As many as one dispatch releases or moves."""
    return [values[first : first + SLOTS_PER_CALL] for first in range(0, len(values), SLOTS_PER_CALL)]
