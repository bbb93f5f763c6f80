"""Links: how one stage's output reaches the next stage's devices, and the sampled tokens the first stage's.

What travels is whole on every device of either mesh, so each receiver gets its copy straight from one sender
(`exegpt_jax.engine.transfer.carrying`): dispatched at once, waiting for nothing, whatever the two tensor degrees are. A
`jax.device_put` of the whole array onto a mesh of another size would wait for it and copy it through the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
from jax import Array
from jax.sharding import Mesh

from exegpt_jax.engine.state import Feed
from exegpt_jax.engine.transfer.carrying import carry_whole


class Link:
    """From one mesh to another; the same mesh on both ends costs nothing."""

    def __init__(self, source: Mesh, target: Mesh) -> None:
        self._target = target
        self._apart = source != target

    def carry(self, x: Array) -> Array:
        """Activations of prompts, on their way."""
        return carry_whole([x], self._target)[0] if self._apart else x

    def feed(self, feed: Feed) -> Feed:
        """What an iteration goes on with, on its way."""
        if not self._apart:
            return feed
        arrays, structure = jax.tree.flatten(feed)
        carried: Feed = jax.tree.unflatten(structure, carry_whole(arrays, self._target))
        return carried


class Links:
    """The links of one pipeline.

    Args:
      meshes: of its stages.
      first_decoder: index of the first stage that decodes.

    Attributes:
      ahead: from each stage but the last to the next.
      back: from the last stage to the first that decodes.
    """

    def __init__(self, meshes: Sequence[Mesh], first_decoder: int = 0) -> None:
        self.ahead = tuple(Link(*pair) for pair in itertools.pairwise(meshes))
        self.back = Link(meshes[-1], meshes[first_decoder])
