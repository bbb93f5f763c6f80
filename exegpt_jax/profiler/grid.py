"""What is measured: points of (rows, tokens) per program kind, in the order in which they matter.

The engine runs in buckets, so the grid holds the rungs that its own ladders reach within the limits: prompt lengths and
attended contexts are exactly those of `solver.plan.plan.make_buckets`, rows are powers of two and the halves between
them. Corners come first, then the middles of what is left, so that a measurement cut short by its time budget still
spans the grid and only the gaps between are interpolated.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import numpy as np

from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.facts.workload import Floats
from solver.plan.buckets import ladder
from solver.plan.plan import CALL_TOKENS, make_buckets
from solver.plan.schedule import Schedule, StageSpec

# From so many rows on there is a point between two powers of two.
_HALVES_FROM = 4

Call = Literal["encode", "decode"]
Cut = Literal["whole", "short"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far the grid reaches.

    Attributes:
      max_rows: of a decode call.
      cache_tokens: positions allocated per row.
      max_prompt_tokens: longest prompt.
    """

    max_rows: int
    cache_tokens: int
    max_prompt_tokens: int

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("cache_tokens", 2), ("max_prompt_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least {least}")
        if self.max_prompt_tokens >= self.cache_tokens:
            raise ValueError(
                f"max_prompt_tokens: {self.max_prompt_tokens} leaves no room for output in "
                f"cache_tokens={self.cache_tokens}; lower it or raise cache_tokens"
            )


@dataclasses.dataclass(frozen=True)
class Point:
    """One program to be timed.

    Attributes:
      tensor: degree.
      call: encode (tokens of each prompt) or decode (positions attended to).
      cut: the whole model, or one of its short versions (`short_specs`), which tell layers from ends.
      kind: index of the short version, of as many as there are.
      rows, tokens: the compiled shape.
      level: 0 at the corners of the grid, rising inwards; level 0 is always measured.
    """

    tensor: int
    call: Call
    cut: Cut
    kind: int
    rows: int
    tokens: int
    level: int

    @property
    def key(self) -> str:
        """Its name in the journal."""
        name = self.cut if self.cut == "whole" else f"{self.cut}{self.kind}"
        return f"{self.call} {self.rows} rows x {self.tokens} tokens, tensor {self.tensor}, {name}"


@dataclasses.dataclass(frozen=True)
class Axes:
    """The grid's sizes, rising."""

    encode_rows: tuple[int, ...]
    encode_tokens: tuple[int, ...]
    decode_rows: tuple[int, ...]
    contexts: tuple[int, ...]

    def of(self, call: Call) -> tuple[Floats, Floats]:
        """Rows and tokens of one kind of call."""
        rows, tokens = (self.encode_rows, self.encode_tokens) if call == "encode" else (self.decode_rows, self.contexts)
        return np.array(rows, np.float64), np.array(tokens, np.float64)


def axes_of(limits: Limits) -> Axes:
    """The sizes within the limits."""
    rows = limits.max_rows
    any_schedule = Schedule("rra", 1, 1, 1, rows, (StageSpec("both", (0, 1), (0,), 1),), rows, 1)
    buckets = make_buckets(any_schedule, limits.cache_tokens, limits.max_prompt_tokens)
    return Axes(ladder(1, rows), buckets.encode_tokens, _with_halves(ladder(1, rows)), buckets.cache_tokens)


def _with_halves(rungs: tuple[int, ...]) -> tuple[int, ...]:
    """Time steps with the rows on matrix units and in caches; between powers of two one more point follows it."""
    between = {(a + b) // 2 for a, b in itertools.pairwise(rungs) if a >= _HALVES_FROM}
    return tuple(sorted({*rungs, *between}))


def points_of(spec: ModelSpec, tensor: int, limits: Limits) -> tuple[Point, ...]:
    """Every point of one tensor degree, the important ones first."""
    axes, kinds = axes_of(limits), short_specs(spec)
    encode = [Point(tensor, "encode", "whole", 0, *place) for place in _encode_grid(axes)]
    decode = [
        Point(tensor, "decode", "whole", 0, rows, tokens, level)
        for rows, tokens, level in _grid(axes.decode_rows, axes.contexts)
    ]
    # With one kind of layer its share is told at one context; of several, each goes its own way with the context.
    short_contexts = axes.contexts[:1] if len(kinds) == 1 else axes.contexts
    short = [
        Point(tensor, "decode", "short", kind, rows, tokens, level)
        for kind in range(len(kinds))
        for rows, tokens, level in _grid(axes.decode_rows, short_contexts)
    ]
    short += [
        dataclasses.replace(point, cut="short", kind=kind)
        for kind in range(len(kinds))
        for point in encode
        if point.level == 0 or len(kinds) > 1
    ]
    order = {"decode": 0, "encode": 1}
    return tuple(sorted((*decode, *encode, *short), key=lambda p: (p.level, p.cut == "short", order[p.call])))


def _grid(rows: tuple[int, ...], tokens: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(rows, tokens, level) of every crossing."""
    row_levels, token_levels = _levels(len(rows)), _levels(len(tokens))
    return [(r, t, row_levels[i] + token_levels[j]) for i, r in enumerate(rows) for j, t in enumerate(tokens)]


def _encode_grid(axes: Axes) -> list[tuple[int, int, int]]:
    """As `_grid`; the last row of a column is the largest that the engine encodes in one call."""
    found = []
    for tokens, token_level in zip(axes.encode_tokens, _levels(len(axes.encode_tokens)), strict=True):
        rows = tuple(r for r in axes.encode_rows if r * tokens <= CALL_TOKENS or r == 1)
        found += [(r, tokens, level + token_level) for r, level in zip(rows, _levels(len(rows)), strict=True)]
    return found


def _levels(count: int) -> list[int]:
    """0 at both ends, 1 in their middle, 2 in the middles of the halves, and so on."""
    levels = [0] * count

    def split(low: int, high: int, level: int) -> None:
        if high - low > 1:
            middle = (low + high) // 2
            levels[middle] = level
            split(low, middle, level + 1)
            split(middle, high, level + 1)

    split(0, count - 1, 1)
    return levels


def kinds_of(spec: ModelSpec) -> tuple[LayerKind, ...]:
    """The model's layer kinds, each once, in order of appearance."""
    return tuple(dict.fromkeys(run.kind for run in spec.layers))


def prompt_share(spec: ModelSpec) -> float:
    """What a decoder layer does with a prompt, its keys and values, as a share of what an encoder layer does.

    By products with weights alone; either is measured in sum.
    """
    wide, mlp = spec.heads * spec.head_dim, (3 if spec.gated_mlp else 2) * spec.mlp_size
    return 2 * wide / (4 * wide + mlp)


def short_specs(spec: ModelSpec) -> tuple[ModelSpec, ...]:
    """For each layer kind the model with a single layer of it; with two, where the model itself has but one layer.

    With an encoder, the model with one layer in either stack, or with two where either stack of the model has but one.
    """
    if spec.encoder_layers:
        deep = 2 if min(run.count for run in spec.layers) == 1 else 1
        return (dataclasses.replace(spec, layers=tuple(LayerRun(kind, deep) for kind in kinds_of(spec))),)
    count = 1 if spec.num_layers > 1 else 2
    return tuple(dataclasses.replace(spec, layers=(LayerRun(kind, count),)) for kind in kinds_of(spec))
