"""Which tensor-parallel degrees a model can be cut into.

Query heads and the feed-forward width are cut evenly, so the degree must divide both. Key/value heads are repeated
and the vocabulary is padded where the degree does not divide them, so neither ever forbids a degree.
"""

from __future__ import annotations

from solver.facts.model_spec import ModelSpec


def tensor_degrees(spec: ModelSpec, most: int = 8) -> tuple[int, ...]:
    """The degrees from 1 to `most` that divide the query heads and the feed-forward width."""
    return tuple(n for n in range(1, most + 1) if spec.heads % n == 0 and spec.mlp_size % n == 0)


def check_tensor(spec: ModelSpec, tensor: int) -> None:
    """Raises ValueError with one line unless `tensor` devices can share the model evenly."""
    if tensor < 1:
        raise ValueError(f"tensor: {tensor} is too small; give at least 1")
    for size, what in ((spec.heads, "attention heads"), (spec.mlp_size, "feed-forward columns")):
        if size % tensor:
            fitting = ", ".join(str(n) for n in tensor_degrees(spec, max(tensor, 8)))
            raise ValueError(f"tensor: {tensor} does not divide the model's {size} {what}; give one of {fitting}")
