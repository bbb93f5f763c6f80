"""Hand-over: prompts that encode devices have encoded go to decode devices, whatever tensor degree either side has.

    encode -> Payload on the encode mesh -> HandOver.send -> Payload on the decode mesh -> insert

Keys, values, token counts, first tokens and how to sample travel together; nothing is waited for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from exegpt_jax.engine.api import EngineError
from exegpt_jax.engine.cache import CacheSpec
from exegpt_jax.engine.carrying import HeadCarrier, Key, carry_whole, run
from exegpt_jax.engine.compiling import Program, Recipe, compile_all
from exegpt_jax.engine.sampling import Counts
from exegpt_jax.engine.state import Payload
from exegpt_jax.sharding.stage import Stage
from solver.facts.model_spec import ModelSpec


class HandOver:
    """From one stage's payloads to another's, both with the whole model on meshes of their own devices.

    Args:
      source, target: the stages.
      cache_dtype: of keys and values.
      checked: compares what was sent with what arrived, which waits for both; for tests.
    """

    def __init__(self, source: Stage, target: Stage, cache_dtype: str, *, checked: bool = False) -> None:
        self._spec, self._checked = source.spec, checked
        self._mesh = target.mesh
        stored, wanted = CacheSpec.of(source, cache_dtype), CacheSpec.of(target, cache_dtype)
        self._heads = HeadCarrier(stored, wanted, self._spec.kv_heads, self._spec.num_layers)
        self._vocab = tuple(self._spec.padded_vocab(stage.stage.tensor) for stage in (source, target))
        self._fits: dict[Key, Program] = {}

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> tuple[Program, ...]:
        """Compiles what payloads of these shapes, (rows, positions), need on their way."""
        sizes = sorted(set(shapes))
        carry, fit = self._heads.recipes(sizes), self._fit_recipes(sorted({rows for rows, _ in sizes}))
        programs = compile_all([*carry.values(), *fit.values()], lambda name, done, total: None)
        self._heads.use(dict(zip(carry, programs[: len(carry)], strict=True)))
        self._fits = dict(zip(fit, programs[len(carry) :], strict=True))
        return programs

    def send(self, payload: Payload) -> Payload:
        """The payload on the target's mesh: on its way, not there yet. The source's may be forgotten.

        Raises EngineError if it is `checked` and arrives altered, or if its shape was not compiled for.
        """
        small, structure = jax.tree.flatten((payload.counts, payload.rows))
        counts, rows = jax.tree.unflatten(structure, carry_whole(small, self._mesh))
        if self._vocab[0] != self._vocab[1]:
            counts = run(self._fits, ("fit", counts.output.shape[0]), *counts)
        there = Payload(self._heads.carry(payload.layers), counts, rows)
        if self._checked and checksum(payload, self._spec) != checksum(there, self._spec):
            raise EngineError(f"hand-over: a payload of {rows.token.shape[0]} rows arrived altered")
        return there

    def _fit_recipes(self, sizes: Iterable[int]) -> dict[Key, Recipe]:
        if self._vocab[0] == self._vocab[1]:
            return {}
        whole = NamedSharding(self._mesh, PartitionSpec())
        found: dict[Key, Recipe] = {}
        for rows in sizes:
            shape = (rows, self._vocab[0])
            given = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for dtype in (jnp.int32, jnp.bool_))
            fit = jax.jit(lambda output, prompt: self._fit(Counts(output, prompt)), out_shardings=whole)
            found["fit", rows] = Recipe(f"fit counts of {rows} rows", fit, given)
        return found

    def _fit(self, counts: Counts) -> Counts:
        """Counts over the target's padded vocabulary; no token lies in the padding."""
        size, wanted = self._spec.vocab_size, self._vocab[1]
        return jax.tree.map(lambda x: jnp.pad(x[:, :size], ((0, 0), (0, wanted - size))), counts)


def checksum(payload: Payload, spec: ModelSpec) -> str:
    """sha256 of what a payload says, however it is stored: every real head once, no padded vocabulary. Waits for it."""
    found = hashlib.sha256()
    for array in jax.tree.leaves(payload.layers):
        copies = array.shape[1] // spec.kv_heads
        found.update(np.ascontiguousarray(np.asarray(array)[:, ::copies]).tobytes())
    for array in payload.counts:
        found.update(np.ascontiguousarray(np.asarray(array)[:, : spec.vocab_size]).tobytes())
    for array in jax.tree.leaves(payload.rows):
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()
