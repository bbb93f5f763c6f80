"""Carrying arrays from one stage's devices to another's: dispatched at once, waiting for nothing, altering no byte.

    cut on the senders' mesh -> shards from device to device -> join on the receivers' mesh

`jax.device_put` onto a sharding whose shards the source does not hold waits for the source and copies through the host.
So keys and values are cut to measure first (`exegpt_jax.engine.transfer.head_routes`), shards are put device by device,
and the arrays are put together from them. Equal degrees, or heads that are only repeated, need no program at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from exegpt_jax.engine.api import EngineError
from exegpt_jax.engine.cache import CacheSpec, Layers
from exegpt_jax.engine.compiling import Program, Recipe
from exegpt_jax.engine.transfer.head_routes import Heads, head_routes
from exegpt_jax.sharding.mesh import make_mesh

Key = tuple[object, ...]

_HEADS = PartitionSpec(None, "tensor")


def carry_whole(arrays: Sequence[Array], mesh: Mesh) -> list[Array]:
    """Copies, whole on every device of `mesh`, of arrays that are whole on every device of theirs."""
    sharding = NamedSharding(mesh, PartitionSpec())
    senders = len(arrays[0].sharding.device_set)
    if senders == mesh.size:
        return list(jax.device_put(list(arrays), sharding))
    # Every sender serves its share of the receivers.
    there = [
        _put([array.addressable_data(rank % senders) for array in arrays], device)
        for rank, device in enumerate(mesh.devices.flat)
    ]
    return [_assembled(array.shape, sharding, shards) for array, *shards in zip(arrays, *there, strict=True)]


class HeadCarrier:
    """Keys and values of some layers, from a stage of one tensor degree to a stage of another.

    Args:
      source, target: how either stage stores its cache.
      kv_heads: of the model.
      layers: how many are carried together.
    """

    def __init__(self, source: CacheSpec, target: CacheSpec, kv_heads: int, layers: int) -> None:
        self._from, self._into, self._layers = source, target, layers
        self._sends, self._receives = cast(Mesh, source.sharding.mesh), cast(Mesh, target.sharding.mesh)
        self._routes = head_routes(kv_heads, self._sends.size, self._receives.size)
        # Heads that one device sends, or gets, at a time.
        self._piece_heads = len(self._routes.pieces[0][0])
        self._run: Mapping[Key, Program] = {}

    def recipes(self, shapes: Iterable[tuple[int, int]]) -> dict[Key, Recipe]:
        """The programs that payloads of these shapes, (rows, positions), need; none where degrees are equal."""
        found: dict[Key, Recipe] = {}
        routes = self._routes
        for rows, length in shapes:
            name = f"{self._layers} layers of {rows} rows x {length} tokens"
            if not routes.whole:
                given = self._abstract(self._from, self._from.kv_heads, rows, length)
                found["cut", rows, length] = Recipe(f"cut {name}", jax.jit(self._cut), (given,))
            if not routes.straight:
                piece = self._abstract(self._into, self._piece_heads * self._receives.size, rows, length)
                pieces = [piece] * len(routes.messages[0])
                found["join", rows, length] = Recipe(f"join {name}", jax.jit(self._join), (pieces,))
        return found

    def use(self, programs: Mapping[Key, Program]) -> None:
        """Takes the compiled `recipes`."""
        self._run = programs

    def carry(self, layers: Layers) -> Layers:
        """The layers on the target's mesh: on their way, not there yet. The source's may be forgotten."""
        if self._sends.size == self._receives.size:
            there: Layers = jax.device_put(layers, self._into.sharding)
            return there
        shape = layers[0][1].shape
        rows, length = shape[0], shape[2]
        pieces = [layers] if self._routes.whole else run(self._run, ("cut", rows, length), layers)
        leaves = [jax.tree.leaves(piece) for piece in pieces]
        messages = [self._message(leaves, index) for index in range(len(self._routes.messages[0]))]
        return messages[0] if self._routes.straight else run(self._run, ("join", rows, length), messages)

    def _message(self, pieces: Sequence[Sequence[Array]], index: int) -> Layers:
        """One message of every receiver, on its way."""
        there = []
        for device, own in zip(self._receives.devices.flat, self._routes.messages, strict=True):
            sender, piece = own[index]
            there.append(_put([leaf.addressable_data(sender) for leaf in pieces[piece]], device))
        leaves = []
        for shards in zip(*there, strict=True):
            rows, heads, *rest = shards[0].shape
            leaves.append(_assembled((rows, heads * len(shards), *rest), self._into.sharding, shards))
        return tuple(zip(leaves[::2], leaves[1::2], strict=True))

    # Programs. Every device works on its own shard, so that nothing is exchanged.

    def _cut(self, layers: Layers) -> list[Layers]:
        """On every sender: the heads of each piece, of all that it holds."""
        tables = zip(*self._routes.pieces, strict=True)
        return [jax.tree.map(lambda x, table=table: _take(x, table, self._sends), layers) for table in tables]

    def _join(self, messages: Sequence[Layers]) -> Layers:
        """On every receiver: its messages laid end to end, and of those the heads that it stores."""
        mesh = self._receives

        def join(*parts: Array) -> Array:
            def lay(*own: Array) -> Array:
                return jnp.concatenate(own, axis=1)

            together = jax.shard_map(lay, mesh=mesh, in_specs=(_HEADS,) * len(parts), out_specs=_HEADS)(*parts)
            return _take(together, self._routes.joined, mesh)

        return jax.tree.map(join, *messages)

    def _abstract(self, spec: CacheSpec, heads: int, rows: int, length: int) -> object:
        keys, values = (
            jax.ShapeDtypeStruct(shape, jnp.dtype(spec.dtype), sharding=spec.sharding)
            for shape in spec.shapes(rows, length, heads)
        )
        return ((keys, values),) * self._layers


# Any: what a program returns is its own.
def run(programs: Mapping[Key, Program], key: Key, *arguments: object) -> Any:
    """Runs a program, or says which one is missing."""
    program = programs.get(key)
    if program is None:
        raise EngineError(f"no program {' '.join(map(str, key))} to carry a payload; the plan does not reach it")
    return program.run(*arguments)


def _take(x: Float[Array, "rows heads a b"], table: Sequence[Heads], mesh: Mesh) -> Float[Array, "rows some a b"]:
    """Of every device's own heads those in its line of the table."""

    def take(own: Array) -> Array:
        if all(line == tuple(range(own.shape[1])) for line in table):
            return own
        return jnp.take(own, jnp.array(table, jnp.int32)[lax.axis_index("tensor")], axis=1)

    return jax.shard_map(take, mesh=mesh, in_specs=_HEADS, out_specs=_HEADS)(x)


def _put(shards: Sequence[Array], device: jax.Device) -> Sequence[Array]:
    """Single-device arrays on another device: as a sharding, which takes them all at once, unlike a bare device."""
    return jax.device_put(list(shards), NamedSharding(make_mesh([device]), PartitionSpec()))


def _assembled(shape: tuple[int, ...], sharding: NamedSharding, shards: Sequence[Array]) -> Array:
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)
