"""One point of the grid as something that can be timed: an engine with just that program, and one sample at a time.

An encode sample is what the runner's encode call is: host arrays, the program, insertion into the cache, the first
tokens on the host. A decode sample is one call with a single iteration and one with many, on a cache as large as the
view, so that their difference is the iterations and what is left is what a call costs beside them.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from exegpt_jax.engine.api import EncodeCall, EncodeRow, Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.sampling import pack
from exegpt_jax.engine.state import Rows, State
from exegpt_jax.profiler.grid import Point
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.model_spec import ModelSpec
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

MOST_ITERATIONS = 32
_FEWEST_ITERATIONS = 4
# A decode sample takes about this long, where the iterations allow it.
_SAMPLE_S = 0.25
_ENDLESS = 2**30


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timing of a point.

    Attributes:
      seconds: of the encode call, or of the decode call with `iterations`.
      single_s: decode: of a call with one iteration; encode: 0.
      iterations: decode; encode: 0.
      host_s: until the call (for decode that with one iteration) was handed over and the host was free again.
    """

    seconds: float
    single_s: float
    iterations: int
    host_s: float


class Probe:
    """A point with its compiled programs. Each `sample` makes its own state, so that idle points hold no memory."""

    def __init__(self, point: Point, stage: Stage, cache_dtype: str) -> None:
        self.point = point
        self._engine = Engine(stage, _plan(point, stage, cache_dtype))
        kinds = ("alloc", "encode", "insert") if point.call == "encode" else ("alloc", "decode")
        self._engine.warm_up(kinds=kinds)
        self._iterations = 0
        self._warm()

    def sample(self) -> Sample:
        return self._encode() if self.point.call == "encode" else self._decode()

    def _warm(self) -> None:
        """First calls cost more; a decode point learns from them how many iterations to take."""
        if self.point.call == "encode":
            self._encode()
            return
        room = min(MOST_ITERATIONS, self._engine.plan.cache_tokens - 1)
        state = _filled(self._engine)
        state, _, _ = _timed_decode(self._engine, state, 1)
        _, taken_s, _ = _timed_decode(self._engine, state, 1)
        self._iterations = min(room, max(_FEWEST_ITERATIONS, round(_SAMPLE_S / taken_s)))

    def _encode(self) -> Sample:
        engine, point = self._engine, self.point
        sampling = Sampling(max_tokens=_ENDLESS)
        prompt = tuple(index % engine.stage.spec.vocab_size for index in range(point.tokens))
        rows = tuple(EncodeRow(row, prompt, 0, row, sampling) for row in range(point.rows))
        call = EncodeCall(rows, point.rows, point.tokens)
        state = engine.initial_state()
        jax.block_until_ready(state)
        began_s = time.perf_counter()
        payload, block = engine.encode(call)
        state = engine.insert(state, payload, range(point.rows), point.tokens)
        host_s = time.perf_counter() - began_s
        for part in block[:3]:
            np.asarray(part)
        jax.block_until_ready(state)
        return Sample(time.perf_counter() - began_s, 0.0, 0, host_s)

    def _decode(self) -> Sample:
        state = _filled(self._engine)
        state, single_s, host_s = _timed_decode(self._engine, state, 1)
        state = _filled(self._engine, state)
        _, seconds, _ = _timed_decode(self._engine, state, self._iterations)
        return Sample(seconds, single_s, self._iterations, host_s)


def shorten(stage: Stage, spec: ModelSpec) -> Stage:
    """The stage's own arrays as a model of other layers: those of `spec`, each the stage's first of its kind.

    Where `spec` has several layers of a kind, they share the arrays.
    """
    plan = blueprint(spec, dataclasses.replace(stage.stage, layers=(0, spec.num_layers)), stage.dtype, stage.mesh)
    held = {leaf.path: array for leaf, array in zip(stage.blueprint.leaves, stage.params, strict=True)}
    sources = [stage.spec.layer_kinds().index(kind) for kind in spec.layer_kinds()]

    def array_of(path: str) -> jax.Array:
        parts = path.split(".")
        if parts[0] != "blocks":
            return held[path]
        return held[".".join((parts[0], str(sources[int(parts[1])]), *parts[2:]))]

    return plan.bind([array_of(leaf.path) for leaf in plan.leaves])


def _plan(point: Point, stage: Stage, cache_dtype: str) -> Plan:
    """A plan with one shape. A prompt needs one position more than its length; a decode view is the whole cache."""
    rows, tokens = point.rows, point.tokens
    encodes = point.call == "encode"
    length = tokens + 1 if encodes else max(tokens, 2)
    schedule = Schedule(
        policy="rra",
        encode_batch=rows,
        decode_iterations=1 if encodes else MOST_ITERATIONS,
        decode_batch=rows,
        max_rows=rows,
        stages=(stage.stage,),
        micro_batch=rows,
        encode_micro_batch=rows,
    )
    prompt = tokens if encodes else 1
    buckets = Buckets((rows,), (prompt,), (rows,), (length,))
    return Plan("profile", stage.dtype, cache_dtype, length, prompt, schedule, buckets)


def _filled(engine: Engine, before: State | None = None) -> State:
    """Every row alive at position 0, with no end before that of its slot."""
    count = engine.plan.schedule.max_rows
    cache, rows = engine.initial_state() if before is None else before

    def placed(value: object, held: jax.Array) -> jax.Array:
        return jax.device_put(np.asarray(value, held.dtype), held.sharding)

    zeros = np.zeros(count)
    rows = Rows(
        token=placed(zeros, rows.token),
        position=placed(zeros, rows.position),
        generated=placed(zeros, rows.generated),
        active=placed(np.ones(count), rows.active),
        wanted=jax.tree.map(placed, pack([Sampling(max_tokens=_ENDLESS)] * count, count), rows.wanted),
    )
    jax.block_until_ready((cache, rows))
    return State(cache, rows)


def _timed_decode(engine: Engine, state: State, iterations: int) -> tuple[State, float, float]:
    """The state after a decode call on every row, its seconds, and the host's part of them."""
    began_s = time.perf_counter()
    state, block = engine.decode(state, iterations, engine.plan.schedule.max_rows, engine.plan.cache_tokens)
    host_s = time.perf_counter() - began_s
    for part in block[:3]:
        np.asarray(part)
    jax.block_until_ready(state)
    return state, time.perf_counter() - began_s, host_s
