"""Hand-over: prompts that encode devices have encoded go to decode devices, whatever tensor degree either side has.

    encode -> payloads of the encode stages -> HandOver.send -> payloads of the decode stages -> insert

Keys, values, token counts, first tokens and how to sample travel together; nothing is waited for.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from exegpt_jax.engine.api import EngineError
from exegpt_jax.engine.cache import CacheSpec, Layers
from exegpt_jax.engine.compiling import Program, Recipe, compile_all
from exegpt_jax.engine.sampling import Counts
from exegpt_jax.engine.state import NO_COUNTS, NO_ROWS, Payload
from exegpt_jax.engine.transfer.carrying import HeadCarrier, Key, carry_whole, run
from exegpt_jax.sharding.stage import Stage
from solver.facts.model_spec import ModelSpec

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Road:
    """Layers that one stage has and another wants.

    Attributes:
      source: index of the stage that has them.
      layers: [first, end) of its own layers.
      carrier: brings them.
    """

    source: int
    layers: tuple[int, int]
    carrier: HeadCarrier


class HandOver:
    """From encode stages to decode stages, on meshes of their own devices; either side has the whole model.

    Args:
      sources, targets: the stages, in the order of their layers.
      cache_dtype: of keys and values.
      checked: compares what was sent with what arrived, which waits for both; for tests.
    """

    def __init__(
        self, sources: Sequence[Stage], targets: Sequence[Stage], cache_dtype: str, *, checked: bool = False
    ) -> None:
        self._spec, self._checked = sources[0].spec, checked
        self._mesh = targets[-1].mesh
        self._roads = [_roads(sources, target, cache_dtype) for target in targets]
        self._vocab = tuple(self._spec.padded_vocab(stages[-1].stage.tensor) for stages in (sources, targets))
        self._fits: dict[Key, Program] = {}

    def warm_up(
        self, shapes: Iterable[tuple[int, int]], progress: Progress = lambda name, done, total: None
    ) -> tuple[Program, ...]:
        """Compiles what payloads of these shapes, (rows, positions), need on their way."""
        sizes = sorted(set(shapes))
        carriers = [road.carrier for roads in self._roads for road in roads]
        recipes = [carrier.recipes(sizes) for carrier in carriers]
        recipes.append(self._fit_recipes(sorted({rows for rows, _ in sizes})))
        programs = compile_all([recipe for some in recipes for recipe in some.values()], progress)
        compiled = iter(programs)
        ready = [{key: next(compiled) for key in some} for some in recipes]
        for carrier, own in zip(carriers, ready, strict=False):
            carrier.use(own)
        self._fits = ready[-1]
        return programs

    def send(self, payloads: Sequence[Payload]) -> tuple[Payload, ...]:
        """Payloads of the encode stages as those of the decode stages: on their way, not there yet.

        The last stage of either side samples and has counts and rows; the others have layers alone. What was sent may
        be forgotten. Raises EngineError if it is `checked` and arrives altered, or if its shape was not compiled for.
        """
        there = [self._layers(payloads, roads) for roads in self._roads]
        small, structure = jax.tree.flatten((payloads[-1].counts, payloads[-1].rows))
        counts, rows = jax.tree.unflatten(structure, carry_whole(small, self._mesh))
        if self._vocab[0] != self._vocab[1]:
            counts = run(self._fits, ("fit", counts.output.shape[0]), *counts)
        arrived = (*(Payload(layers, NO_COUNTS, NO_ROWS) for layers in there[:-1]), Payload(there[-1], counts, rows))
        if self._checked and checksum(payloads, self._spec) != checksum(arrived, self._spec):
            raise EngineError(f"hand-over: a payload of {rows.token.shape[0]} rows arrived altered")
        return arrived

    def _layers(self, payloads: Sequence[Payload], roads: Sequence[_Road]) -> Layers:
        """A decode stage's layers, from every encode stage that has some of them."""
        parts = [road.carrier.carry(payloads[road.source].layers[slice(*road.layers)]) for road in roads]
        return tuple(layer for part in parts for layer in part)

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


def _roads(sources: Sequence[Stage], target: Stage, cache_dtype: str) -> list[_Road]:
    """From all who have layers of the target's, in the order of the layers."""
    found = []
    for index, source in enumerate(sources):
        own, wanted = source.stage.layers, target.stage.layers
        first, end = max(own[0], wanted[0]), min(own[1], wanted[1])
        if first < end:
            specs = CacheSpec.of(source, cache_dtype), CacheSpec.of(target, cache_dtype)
            carrier = HeadCarrier(*specs, source.spec.kv_heads, end - first)
            found.append(_Road(index, (first - own[0], end - own[0]), carrier))
    return found


def checksum(payloads: Sequence[Payload], spec: ModelSpec) -> str:
    """sha256 of what a side's payloads say, however they are stored: every real head once, no padded vocabulary.

    Waits for them.
    """
    found = hashlib.sha256()
    for array in jax.tree.leaves([payload.layers for payload in payloads]):
        copies = array.shape[1] // spec.kv_heads
        found.update(np.ascontiguousarray(np.asarray(array)[:, ::copies]).tobytes())
    for array in payloads[-1].counts:
        found.update(np.ascontiguousarray(np.asarray(array)[:, : spec.vocab_size]).tobytes())
    for array in jax.tree.leaves(payloads[-1].rows):
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()
