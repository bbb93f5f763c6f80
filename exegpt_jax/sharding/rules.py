"""Which mesh axis each logical axis of a parameter or cache is cut along.

Models name the axes of their arrays ("embed", "heads", ...); this mapping alone decides how they lie on a mesh.
Trying another sharding is changing the mapping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis; None keeps the axis whole on every device.

    "heads" and "kv_heads" are fused head dimensions of projections, or head dimensions of a cache.
    """

    vocab: str | None = "tensor"
    embed: str | None = None
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    rows: str | None = "data"

    def spec(self, axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        Raises:
          ValueError: one line: an unknown axis, two axes on one mesh axis, or a size its mesh axis does not divide.
        """
        if len(axes) != len(shape):
            raise ValueError(f"axes: {tuple(axes)} names {len(axes)} dimensions of an array of shape {tuple(shape)}")
        known = {field.name for field in dataclasses.fields(self)}
        placed: dict[str, str] = {}
        entries: list[str | None] = []
        for axis, size in zip(axes, shape, strict=True):
            if axis is not None and axis not in known:
                raise ValueError(f"axes: {axis!r} is unknown; known: {', '.join(sorted(known))}")
            target = None if axis is None else getattr(self, axis)
            entries.append(target)
            if axis is None or target is None:
                continue
            if target not in mesh.shape:
                raise ValueError(f"{axis}: mapped to {target!r}, which the mesh {dict(mesh.shape)} lacks")
            if target in placed:
                raise ValueError(
                    f"{axis}: collides with {placed[target]} on the mesh axis {target!r}; map one elsewhere"
                )
            if size % mesh.shape[target]:
                raise ValueError(f"{axis}: {size} is not divisible by the {mesh.shape[target]} devices of {target!r}")
            placed[target] = axis
        return PartitionSpec(*entries)
