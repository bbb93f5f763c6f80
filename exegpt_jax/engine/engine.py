"""The Engine: `encode`, `insert`, `decode`, `release`, `move` over one stage, as calls of compiled programs.

State is explicit: each call takes it and returns what it has become; the cache inside is donated, so the old state must
not be used again. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np

from exegpt_jax.engine.api import EncodeCall, EngineError
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.compiling import Program, compile_all
from exegpt_jax.engine.programs import SLOTS_PER_CALL, Recipes
from exegpt_jax.engine.sampling import pack
from exegpt_jax.engine.state import Block, Payload, State
from exegpt_jax.sharding.stage import Stage
from solver.plan.plan import Plan


def _silent(name: str, done: int, total: int) -> None:
    pass


class Engine:
    """One stage with the whole model and the programs of a plan.

    Attributes:
      stage: parameters on their mesh.
      plan: what it was compiled for.
      programs: every executable, once `warm_up` has run.
    """

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self.stage = stage
        self.plan = plan
        self.programs: tuple[Program, ...] = ()
        self._run: dict[tuple[object, ...], Program] = {}

    def warm_up(
        self, progress: Callable[[str, int, int], None] = _silent, kinds: Container[str] | None = None
    ) -> tuple[Program, ...]:
        """Compiles every program that the plan can reach; afterwards nothing compiles any more.

        Args:
          progress: called with a program's name, how many are done, and how many there are.
          kinds: only these (a measurement needs few).
        """
        recipes = Recipes(self.stage, self.plan).all()
        recipes = {key: recipe for key, recipe in recipes.items() if kinds is None or key[0] in kinds}
        self.programs = compile_all(list(recipes.values()), progress)
        self._run = dict(zip(recipes, self.programs, strict=True))
        return self.programs

    def initial_state(self) -> State:
        """An empty cache."""
        return State(*self._call("alloc"))

    def encode(self, call: EncodeCall) -> tuple[Payload, Block]:
        """Whole prompts of one call, padded to its buckets."""
        rows, bucket = call.rows, call.rows_bucket
        tokens = np.zeros((bucket, call.tokens_bucket), np.int32)
        for index, row in enumerate(rows):
            tokens[index, : len(row.token_ids)] = row.token_ids
        payload, block = self._call(
            "encode",
            bucket,
            call.tokens_bucket,
            arguments=(
                self.stage.params,
                tokens,
                _ints([len(row.token_ids) for row in rows], bucket, 0),
                _ints([row.generated for row in rows], bucket, 0),
                pack([row.sampling for row in rows], bucket),
            ),
        )
        return payload, block

    def encode_chunk(self, call: EncodeCall, layers: Layers | None, history: Sequence[int]) -> tuple[Payload, Block]:
        """The next chunk of one prompt; `layers` (donated) and `history` are what came before it."""
        (row,) = call.rows
        context = call.context_bucket
        if layers is None:
            layers = self._call("payload", context)
        tokens = np.zeros((1, call.tokens_bucket), np.int32)
        tokens[0, : len(row.token_ids)] = row.token_ids
        whole = np.zeros((1, context), np.int32)
        length = row.start + len(row.token_ids)
        whole[0, :length] = [*history, *row.token_ids]
        payload, block = self._call(
            "chunk",
            call.tokens_bucket,
            context,
            arguments=(
                self.stage.params,
                layers,
                tokens,
                _ints([row.start], 1, 0),
                whole,
                _ints([length], 1, 0),
                _ints([row.generated], 1, 0),
                pack([row.sampling], 1),
            ),
        )
        return payload, block

    def insert(self, state: State, payload: Payload, slots: Sequence[int], length: int) -> State:
        """Puts the payload's rows into slots; `length` is the payload's, in positions."""
        bucket = payload.rows.token.shape[0]
        where = _ints(slots, bucket, self.plan.schedule.max_rows)
        return State(*self._call("insert", bucket, length, arguments=(state.cache, state.rows, payload, where)))

    def decode(self, state: State, iterations: int, rows_bucket: int, cache_bucket: int) -> tuple[State, Block]:
        """At most `iterations` tokens for each active row among the lowest `rows_bucket`, in one dispatch."""
        if iterations > self.plan.schedule.decode_iterations:
            raise EngineError(f"{iterations} iterations exceed the plan's {self.plan.schedule.decode_iterations}")
        arguments = (self.stage.params, state.cache, state.rows, np.int32(iterations))
        cache, rows, block = self._call("decode", rows_bucket, cache_bucket, arguments=arguments)
        return State(cache, rows), block

    def release(self, state: State, slots: Sequence[int]) -> State:
        """Ends rows."""
        rows = state.rows
        for some in _batches(slots):
            where = _ints(some, SLOTS_PER_CALL, self.plan.schedule.max_rows)
            rows = self._call("release", arguments=(rows, where))
        return State(state.cache, rows)

    def move(self, state: State, moves: Sequence[tuple[int, int]]) -> State:
        """Carries rows to other slots."""
        cache, rows = state
        beyond = self.plan.schedule.max_rows
        for some in _batches(moves):
            sources = _ints([source for source, _ in some], SLOTS_PER_CALL, beyond)
            targets = _ints([target for _, target in some], SLOTS_PER_CALL, beyond)
            cache, rows = self._call("move", arguments=(cache, rows, sources, targets))
        return State(cache, rows)

    def _call(self, *key: object, arguments: tuple[object, ...] = ()):  # type: ignore[no-untyped-def]  # per program
        program = self._run.get(key)
        if program is None:
            raise EngineError(
                f"no program {' '.join(map(str, key))}; the plan does not reach it, or warm_up did not run"
            )
        return program.run(*arguments)


def _ints(values: Sequence[int], size: int, padding: int) -> np.ndarray:
    padded = np.full(size, padding, np.int32)
    padded[: len(values)] = values
    return padded


def _batches(values: Sequence) -> list[Sequence]:
    return [values[first : first + SLOTS_PER_CALL] for first in range(0, len(values), SLOTS_PER_CALL)]
