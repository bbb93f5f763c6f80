"""Times of stages as functions of a batch: a profile seen through a workload, ready to be looked up.

`UnitCosts` holds what one layer, and each end, costs on one device kind at one tensor degree, by whole numbers of rows.
A `Pipeline` adds them up for the stages of a placement. Policies and search see nothing else of a profile.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from solver.facts.cluster import LEVELS, Level
from solver.facts.workload import Floats


@dataclasses.dataclass(frozen=True, eq=False)
class UnitCosts:
    """One device kind at one tensor degree. `r` runs over rows 0 .. most_rows; row 0 costs nothing.

    Attributes:
      kind, tensor: which.
      encode_s: float64 [r]: one layer encoding r prompts of the workload (by their tokens and squared lengths).
      contexts: float64 [contexts]: rising knots of the mean context.
      decode_s: float64 [contexts, r]: one layer, one decode iteration of r rows.
      embed_encode_s, embed_decode_s: float64 [r]: what the first stage adds.
      head_encode_s, head_decode_s: float64 [r]: what the last stage adds, for r rows whose next token is sampled, the
        dispatch cost included.
      hand_over_encode_s, hand_over_decode_s: level -> float64 [r]: activations of r prompts, or rows, to the next
        stage over the link of that level, the dispatch cost included.
      weights_bytes, embed_bytes, head_bytes: per device: of one layer, of each end.
      cache_token_bytes: per device, layer and token of context.
      estimated: some number behind these costs is an estimate or an extrapolation.
      phase_s: fixed cost of a decode call that runs a phase's iterations in one dispatch.
    """

    kind: str
    tensor: int
    encode_s: Floats
    contexts: Floats
    decode_s: Floats
    embed_encode_s: Floats
    embed_decode_s: Floats
    head_encode_s: Floats
    head_decode_s: Floats
    hand_over_encode_s: dict[Level, Floats]
    hand_over_decode_s: dict[Level, Floats]
    weights_bytes: int
    embed_bytes: int
    head_bytes: int
    cache_token_bytes: int
    estimated: bool
    phase_s: float = 0.0

    def __post_init__(self) -> None:
        if set(self.hand_over_encode_s) != set(LEVELS) or set(self.hand_over_decode_s) != set(LEVELS):
            raise ValueError("hand_over: needs a column for each of island, host and pod")

    @property
    def most_rows(self) -> int:
        return len(self.encode_s) - 1


@dataclasses.dataclass(frozen=True)
class PlacedStage:
    """A stage in the terms of its costs.

    Attributes:
      unit: device kind and tensor degree.
      layers: how many.
      first, last: it carries the embedding, the head.
      link: level of the link to the next stage; None for the last one.
    """

    unit: UnitCosts
    layers: int
    first: bool
    last: bool
    link: Level | None

    @property
    def kind(self) -> str:
        return self.unit.kind

    @property
    def tensor(self) -> int:
        return self.unit.tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """The stages that a batch passes, in order.

    Attributes:
      stages: first to last.
      return_s: sampled tokens on their way back to the first stage; part of an iteration's path, of no machine's time.
    """

    stages: tuple[PlacedStage, ...]
    return_s: float = 0.0

    @functools.cached_property
    def encode_rows_s(self) -> Floats:
        """float64 [stages, r]: each stage on an encode micro-batch of r prompts, hand-over included (x^E_j)."""
        return np.stack([_encode_s(stage) for stage in self.stages])

    @functools.cached_property
    def decode_rows_s(self) -> Floats:
        """float64 [stages, contexts, r]: each stage on a decode micro-batch of r rows, hand-over included (x_j)."""
        return np.stack([_decode_s(stage) for stage in self.stages])

    @functools.cached_property
    def decode_pairs_s(self) -> Floats:
        """float64 [stages, contexts, r, 2]: `decode_rows_s` at r and at r + 1 rows, r below the last."""
        return np.stack([self.decode_rows_s[..., :-1], self.decode_rows_s[..., 1:]], axis=-1)

    @property
    def phase_s(self) -> float:
        """What each decode phase costs beside its iterations: the slowest stage's."""
        return max(stage.unit.phase_s for stage in self.stages)

    @property
    def contexts(self) -> Floats:
        """The knots of `decode_rows_s`; every unit of a workload has the same."""
        return self.stages[0].unit.contexts

    @property
    def most_rows(self) -> int:
        return self.stages[0].unit.most_rows

    def encode_s(self, rows: Floats) -> Floats:
        """float64 [stages, ...]: linear between whole rows; rows in 0 .. most_rows."""
        return _at_rows(self.encode_rows_s, rows)

    def decode_s(self, rows: Floats, context: Floats) -> Floats:
        """float64 [stages, ...]: rows and context broadcast together; linear between rows and between knots."""
        knots = self.contexts
        rows, context = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(context, np.float64))
        low = np.clip(np.searchsorted(knots, context, side="right") - 1, 0, max(0, len(knots) - 2))
        high = np.minimum(low + 1, len(knots) - 1)
        span = np.where(high > low, knots[high] - knots[low], 1.0)
        share = np.clip((context - knots[low]) / span, 0.0, 1.0)
        below, part = _floor(rows, self.most_rows)
        table = self.decode_rows_s
        at_low = table[:, low, below] * (1 - part) + table[:, low, below + 1] * part
        at_high = table[:, high, below] * (1 - part) + table[:, high, below + 1] * part
        return at_low * (1 - share) + at_high * share


def _floor(rows: Floats, most: int) -> tuple[np.ndarray, Floats]:
    if rows.size and (rows.max() > most or rows.min() < 0):
        raise ValueError(f"rows: {rows.max():.6g} is beyond the {most} that costs were tabulated for")
    below = np.minimum(rows.astype(np.int64), most - 1)
    return below, rows - below


def _at_rows(table: Floats, rows: Floats) -> Floats:
    rows = np.asarray(rows, np.float64)
    below, part = _floor(rows, table.shape[-1] - 1)
    return table[..., below] * (1 - part) + table[..., below + 1] * part


def _encode_s(stage: PlacedStage) -> Floats:
    unit = stage.unit
    total = stage.layers * unit.encode_s
    if stage.first:
        total = total + unit.embed_encode_s
    if stage.last:
        total = total + unit.head_encode_s
    elif stage.link is not None:
        total = total + unit.hand_over_encode_s[stage.link]
    return total


def _decode_s(stage: PlacedStage) -> Floats:
    unit = stage.unit
    total = stage.layers * unit.decode_s
    if stage.first:
        total = total + unit.embed_decode_s
    if stage.last:
        total = total + unit.head_decode_s
    elif stage.link is not None:
        total = total + unit.hand_over_decode_s[stage.link]
    return total
