"""What attention asks of a key/value cache: the only place where models meet it.

Models never know the cache's layout; `exegpt_jax.engine.cache` implements these functions, tests bring their own.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from jax import Array
from jaxtyping import Float, Int

Layer = TypeVar("Layer")


@runtime_checkable
class CacheOps(Protocol[Layer]):
    """Pure functions over one layer's cache (any pytree)."""

    def write(
        self,
        layer: Layer,
        k: Float[Array, "rows tokens kv_heads head_dim"],
        v: Float[Array, "rows tokens kv_heads head_dim"],
        positions: Int[Array, "rows tokens"],
    ) -> Layer:
        """Stores keys and values at their positions; position -1 is stored nowhere."""
        ...

    def view(
        self, layer: Layer
    ) -> tuple[Float[Array, "rows kv_heads length head_dim"], Float[Array, "rows kv_heads length head_dim"]]:
        """Keys and values to attend to; the index along `length` is the position."""
        ...

    def fresh(
        self,
        k: Float[Array, "rows tokens kv_heads head_dim"],
        v: Float[Array, "rows tokens kv_heads head_dim"],
    ) -> Layer:
        """A layer that holds exactly these, the first at position 0."""
        ...
