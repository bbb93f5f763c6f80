"""What a batch costs on every stage in an event simulation: lookups, for the batch that is really there.

`WorkloadCosts` looks a batch up by its rows, prompts being the workload's mean ones: what closed forms see. Other
sources (`solver.simulate.events.lengths`) see the lengths of the very prompts of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline
from solver.simulate.events.lookup import DecodeLookup


@dataclasses.dataclass(frozen=True, eq=False)
class DecodePhase:
    """Rows of a decode phase of N iterations.

    Attributes:
      rows: int64 [N]: rows computed.
      context: float64 [N]: mean positions that one of them attends to.
      parts: micro-batches.
      dispatched: iterations asked for; fewer run where all rows end before.
      held: rows whose slots are taken while the phase runs.
      reach: positions of the longest row by the end of the phase; 0 unless the costs ask for it.
    """

    rows: Ints
    context: Floats
    parts: int
    dispatched: int
    held: int
    reach: int


class Costs(Protocol):
    """Seconds per stage of one pipeline.

    Attributes:
      stages: how many.
      phase_s: fixed cost of a decode phase.
      return_s: a sampled token's way back to the first stage.
      most_decode: decode iterations that the runner must allow an answer; 0 where no costs depend on it.
    """

    stages: int
    phase_s: float
    return_s: float
    most_decode: int

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [micro-batches, stages] for prompts of these lengths in about `parts` micro-batches."""
        ...

    def decode(self, phase: DecodePhase) -> Floats:
        """float64 [N, parts, stages]."""
        ...

    def moved_tokens(self, inputs: Ints) -> int:
        """Positions of keys and values that these prompts hand over to decode devices."""
        ...


class WorkloadCosts:
    """By rows; every prompt counts as one of the workload. Attributes as in `Costs`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.stages = len(pipeline.stages)
        self.phase_s, self.return_s = pipeline.phase_s, pipeline.return_s
        self.most_decode = 0
        self._lookup = DecodeLookup(pipeline)

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [parts, stages]."""
        return self.pipeline.encode_s(split(len(inputs), parts).astype(np.float64)).T

    def decode(self, phase: DecodePhase) -> Floats:
        """float64 [N, parts, stages]."""
        return decode_parts(self._lookup, phase.rows, phase.context, phase.parts)

    def moved_tokens(self, inputs: Ints) -> int:
        """Their own."""
        return int(inputs.sum())


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
