"""Times of one vLLM iteration on an RTX 4090, from the per-operator tables that LLMServingSim published (MIT).

Tables: `dense.csv.gz` (layer, tokens), `per_sequence.csv.gz` (layer, sequences), `attention.csv.gz` (prefill chunk, its
tokens cached before, decode rows, their context), in microseconds. Operators are added up as the model runs them; the
attention of several chunks in one iteration is composed as `attention_us` says.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import pathlib

import numpy as np

from solver.facts.workload import Floats
from solver.simulate.events.mixed import Chunk

LAYERS = 32
# Operators of a Llama layer, and how often a layer runs each.
LAYER_OPERATORS = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
END_OPERATORS = ("embedding", "final_layernorm")
SEQUENCE_OPERATORS = ("lm_head", "sampler")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Seconds by one size, linear between measured points."""

    sizes: Floats
    seconds: Floats

    def at(self, size: float) -> float:
        return float(np.interp(size, self.sizes, self.seconds))


@dataclasses.dataclass(frozen=True, eq=False)
class CardTimes:
    """One card's tables; `solver.simulate.events.mixed.MixedCosts` for the event simulation.

    Attributes:
      per_layer: seconds of a layer's dense operators by tokens.
      ends: embedding and last norm by tokens.
      sampling: head and sampler by sequences.
      axes: grids of prefill chunk, tokens before it, decode rows, their context; each begins with 0.
      attention: float64 [chunk, before, rows, context]: seconds of one layer's attention; NaN where not measured.
      graph_sizes: token counts that an iteration is padded to, rising; beyond the last it is not.
    """

    per_layer: Curve
    ends: Curve
    sampling: Curve
    axes: tuple[Floats, Floats, Floats, Floats]
    attention: Floats
    graph_sizes: tuple[int, ...] = ()
    stages: int = 1
    fused: bool = True
    return_s: float = 0.0

    def mixed(self, rows: int, tokens: float, chunks: list[Chunk], parts: int) -> Floats:
        """float64 [1, 1]: one iteration of all layers."""
        if parts != 1:
            raise ValueError(f"parts: {parts}, but these times are of one device; give 1")
        computed = rows + sum(size for size, _ in chunks)
        padded = next((size for size in self.graph_sizes if size >= computed), computed)
        dense = LAYERS * self.per_layer.at(padded) + self.ends.at(padded)
        attention = LAYERS * self.attention_s(rows, tokens / rows if rows else 0.0, chunks)
        return np.array([[dense + attention + self.sampling.at(rows + len(chunks))]])

    def attention_s(self, rows: int, context: float, chunks: list[Chunk]) -> float:
        """One layer's attention over decode rows and chunks.

        The tables know one chunk. Several are taken as one of their summed tokens (for how chunk and rows share the
        card), less what that chunk alone costs, plus what each of them alone costs.
        """
        if not chunks:
            return self._at(0.0, 0.0, rows, context)
        size = sum(tokens for tokens, _ in chunks)
        before = sum(tokens * behind for tokens, behind in chunks) / size
        if len(chunks) == 1:
            return self._at(size, before, rows, context)
        alone = sum(self._at(tokens, behind, 0.0, 0.0) for tokens, behind in chunks)
        return alone + self._at(size, before, rows, context) - self._at(size, before, 0.0, 0.0)

    def _at(self, *sizes: float) -> float:
        """Linear along each axis; below the smallest measured size, that size, unless it is 0."""
        if not sizes[0] and not sizes[2]:
            return 0.0
        block, part = self.attention, []
        index: list[slice] = []
        for axis, size in zip(self.axes, sizes, strict=True):
            at = min(max(size, axis[1]), axis[-1]) if size > 0 else 0.0
            low = int(np.searchsorted(axis, at, side="right")) - 1
            high = min(low + 1, len(axis) - 1) if at > axis[low] else low
            index.append(slice(low, high + 1))
            part.append((at - axis[low]) / (axis[high] - axis[low]) if high > low else 0.0)
        block = block[tuple(index)]
        for share in part:
            block = block[0] if len(block) == 1 else block[0] * (1 - share) + block[1] * share
        if np.isnan(block):
            raise ValueError(f"attention: nothing measured around {sizes}")
        return float(block)


def read(folder: pathlib.Path, graph_sizes: tuple[int, ...]) -> CardTimes:
    """The tables under `folder` (.../bf16/tp1)."""
    dense, sequences = _curves(folder / "dense.csv.gz"), _curves(folder / "per_sequence.csv.gz")
    measured = np.array([[float(cell) for cell in row.values()] for row in _rows(folder / "attention.csv.gz")])
    axes = tuple(np.unique(np.append(column, 0.0)) for column in measured[:, :4].T)
    attention = np.full([len(axis) for axis in axes], np.nan)
    where = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, measured[:, :4].T, strict=True))
    attention[where] = measured[:, 4] / 1e6
    return CardTimes(
        per_layer=_sum([(dense[name], times) for name, times in LAYER_OPERATORS.items()]),
        ends=_sum([(dense[name], 1) for name in END_OPERATORS]),
        sampling=_sum([(sequences[name], 1) for name in SEQUENCE_OPERATORS]),
        axes=(axes[0], axes[1], axes[2], axes[3]),
        attention=attention,
        graph_sizes=graph_sizes,
    )


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _curves(path: pathlib.Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(path):
        name, size, time_us = row.values()
        points.setdefault(name, []).append((float(size), float(time_us) / 1e6))
    return {name: Curve(*np.array(sorted(curve)).T) for name, curve in points.items()}


def _sum(curves: list[tuple[Curve, int]]) -> Curve:
    sizes = np.unique(np.concatenate([curve.sizes for curve, _ in curves]))
    return Curve(sizes, sum(times * np.interp(sizes, curve.sizes, curve.seconds) for curve, times in curves))
