"""What a batch costs on every stage in an event simulation: lookups, for the batch that is really there.

`WorkloadCosts` looks a batch up by its rows, prompts being the workload's mean ones: what closed forms see. Other
sources (`solver.simulate.events_lengths`) see the lengths of the very prompts of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline
from solver.simulate.events_lookup import DecodeLookup


@dataclasses.dataclass(frozen=True, eq=False)
class DecodePhase:
    """Rows of a decode phase of N iterations.

    Attributes:
      rows: int64 [N]: rows computed.
      tokens: float64 [N]: mean positions that one of them attends to.
      parts: micro-batches.
      held: rows whose slots are taken while the phase runs.
      reach: positions of the longest row by the end of the phase; 0 unless the costs ask for it.
    """

    rows: Ints
    context: Floats
    parts: int
    held: int
    reach: int


class Costs(Protocol):
    """Seconds per stage of one pipeline."""

    @property
    def stages(self) -> int: ...

    @property
    def phase_s(self) -> float:
        """Fixed cost of a decode phase."""
        ...

    @property
    def most_decode(self) -> int:
        """Decode iterations that the runner must allow for; 0 where costs do not ask for the longest row's reach."""
        ...

    @property
    def return_s(self) -> float:
        """A sampled token's way back to the first stage."""
        ...

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [micro-batches, stages] for prompts of these lengths in about `parts` micro-batches."""
        ...

    def decode(self, phase: DecodePhase) -> Floats:
        """float64 [N, parts, stages]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class WorkloadCosts:
    """By rows; every prompt counts as one of the workload."""

    pipeline: Pipeline
    most_decode: int = 0

    @property
    def stages(self) -> int:
        return len(self.pipeline.stages)

    @property
    def phase_s(self) -> float:
        return self.pipeline.phase_s

    @property
    def return_s(self) -> float:
        return self.pipeline.return_s

    def encode(self, inputs: Ints, parts: int) -> Floats:
        return self.pipeline.encode_s(split(len(inputs), parts).astype(np.float64)).T

    def decode(self, phase: DecodePhase) -> Floats:
        return decode_parts(self._lookup, phase.rows, phase.context, phase.parts)

    @functools.cached_property
    def _lookup(self) -> DecodeLookup:
        return DecodeLookup(self.pipeline)


def decode_parts(lookup: DecodeLookup, rows: Ints, context: Floats, parts: int) -> Floats:
    """float64 [N, parts, stages]: micro-batches of whole rows, the first ones larger by one if need be."""
    if parts == 1:
        if len(rows) == 1:
            return lookup.one(int(rows[0]), float(context[0]))[None, None, :]
        return lookup.many(rows, context)[:, None, :]
    low, rest = np.divmod(rows, parts)
    sizes = np.stack([low + (rest > 0), low], axis=1)
    both = lookup.many(sizes, np.broadcast_to(context[:, None], sizes.shape))
    smaller = np.arange(parts) >= rest[:, None]
    return both[np.arange(len(rows))[:, None], smaller.astype(np.intp)]


def split(rows: int, parts: int) -> Ints:
    """int64 [parts]: `rows` as equal as whole rows can be, the larger ones first."""
    low, rest = divmod(rows, parts)
    return low + (np.arange(parts) < rest).astype(np.int64)
