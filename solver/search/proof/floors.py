"""Times and bytes that no candidate of a placement, or of a whole family of placements, undercuts.

Floors are plain tables, so that bounds need not know where they come from: `floors_of` makes them for one pipeline,
`lowest` takes the least of several. A family that cannot beat an incumbent on its floors is put aside before any of its
members is looked at (scheduling.md, 2.6 i).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from solver.facts.workload import Floats
from solver.simulate.costs import Pipeline
from solver.simulate.lengths import Lengths
from solver.simulate.points import Conditions


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryFloor:
    """Bytes that a stage holds at least: fixed + row x allocated rows + token x tokens of residents + batch x B_E.

    Attributes:
      fixed_bytes, row_bytes, token_bytes, capacity_bytes: float64 [stages], or [ways to count].
      batch_bytes: the same; None: B_E is left out.
    """

    fixed_bytes: Floats
    row_bytes: Floats
    token_bytes: Floats
    capacity_bytes: Floats
    batch_bytes: Floats | None = None

    def share(self, rows: Floats, tokens: Floats, batch: Floats | None = None) -> Floats:
        """float64 [boxes]: of the capacity, on the stage that is fullest; above 1 nothing fits."""
        held = self.fixed_bytes + self.row_bytes * rows[:, None] + self.token_bytes * tokens[:, None]
        if batch is not None and self.batch_bytes is not None:
            held = held + self.batch_bytes * batch[:, None]
        return (held / self.capacity_bytes).max(axis=1)

    @property
    def most_rows(self) -> float:
        """Allocated rows beyond which some stage overflows, tokens left out; below 0 where weights alone do not fit."""
        room = self.capacity_bytes - self.fixed_bytes
        rows = np.full(len(room), np.inf)
        np.divide(room, self.row_bytes, out=rows, where=self.row_bytes > 0)
        return float(np.where(room < 0, -1.0, rows).min())


def memory_floor(
    pipeline: Pipeline, lengths: Lengths, conditions: Conditions, capacity_bytes: Sequence[float]
) -> MemoryFloor:
    """Weights and cache of one pipeline, which no way of counting bytes undercuts; temporaries are left out.

    `capacity_bytes`: of a device of each stage.
    """
    stages = pipeline.stages
    # A model with tied embeddings holds one matrix where its first stage is also the last.
    ends = [
        max(s.unit.embed_bytes, s.unit.head_bytes)
        if s.first and s.last
        else s.first * s.unit.embed_bytes + s.last * s.unit.head_bytes
        for s in stages
    ]
    token = np.array([stage.layers * stage.unit.cache_token_bytes for stage in stages], np.float64)
    slots = conditions.cache_layout == "slots"
    return MemoryFloor(
        fixed_bytes=np.array([s.layers * s.unit.weights_bytes + e for s, e in zip(stages, ends, strict=True)], float),
        row_bytes=token * (conditions.cache_tokens or lengths.workload.most_tokens) * slots,
        token_bytes=token * (not slots),
        capacity_bytes=np.array(capacity_bytes, np.float64),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Floors:
    """Lower bounds of the times of a phase.

    Attributes:
      encode_s: float64 [B + 1]: of T_E, at B_E = 0 .. B; entry 0 is never read.
      contexts: float64 [contexts]: rising; mean contexts beyond them cost what the nearest does.
      decode_s: float64 [contexts, n + 1]: of T_D at n = 0 .. rows in flight, such that straight lines between entries,
        in both directions, are bounds too.
      drain_s: float64 [contexts, n + 1]: of what a decode phase costs beside its iterations, in the same sense.
      memory: None where bytes are not bounded.
    """

    encode_s: Floats
    contexts: Floats
    decode_s: Floats
    drain_s: Floats
    memory: MemoryFloor | None = None

    def __post_init__(self) -> None:
        shapes = {self.decode_s.shape, self.drain_s.shape}
        if len(shapes) != 1 or self.decode_s.shape[0] != len(self.contexts) or len(self.encode_s) < 2:
            raise ValueError(f"floors: tables of shapes {shapes} for {len(self.contexts)} contexts do not fit together")

    @property
    def most_encode(self) -> int:
        return len(self.encode_s) - 1

    @property
    def most_rows(self) -> int:
        return self.decode_s.shape[1] - 1


def floors_of(
    pipeline: Pipeline,
    encode_micro_batches: int = 1,
    micro_batches: int = 1,
    memory: MemoryFloor | None = None,
    most_rows: int | None = None,
) -> Floors:
    """Floors of one pipeline at m_E and m_D micro-batches (scheduling.md, 2.2); T_E is exact.

    `most_rows`: in flight at most; None: as many as the tables reach.
    """
    most_encode = pipeline.most_rows * encode_micro_batches
    encode = np.arange((most_encode if most_rows is None else min(most_encode, most_rows)) + 1) / encode_micro_batches
    stages = pipeline.encode_s(encode)
    encode_s = stages.sum(axis=0) + (encode_micro_batches - 1) * stages.max(axis=0)

    # By whole rows of a micro-batch: the path, and the bottleneck made so that it holds between the entries too.
    tables = pipeline.decode_rows_s
    if most_rows is not None:
        tables = tables[..., : max(1, -(-most_rows // micro_batches)) + 1]
    path = tables.sum(axis=0)
    slowest = below_maximum(tables)
    back_s = pipeline.return_s if len(pipeline.stages) > 1 else 0.0
    returned = path + back_s * (np.arange(tables.shape[2]) > 0)
    decode = below_maximum(np.concatenate([micro_batches * tables, returned[None]]))
    # Between entries path - max lies above its chord, and (m - 1) max above the lowered one.
    drain = np.minimum(path - tables.max(axis=0), (micro_batches - 1) * slowest) + pipeline.phase_s
    return Floors(
        encode_s,
        pipeline.contexts,
        spread(decode, micro_batches),
        spread(drain, micro_batches),
        memory,
    )


def below_maximum(tables: Floats) -> Floats:
    """float64 [contexts, r]: entries whose straight lines lie below the maximum of `tables` [choices, contexts, r].

    The maximum of several bilinear pieces may lie below the plane through its corners. Where one choice is the largest
    at all corners of a cell it does not; elsewhere the corners are lowered by the least that any choice misses.
    """
    top = tables.max(axis=0)
    missing = top - tables
    for axis in (1, 2):
        if missing.shape[axis] > 1:
            before = missing[:, :-1] if axis == 1 else missing[:, :, :-1]
            after = missing[:, 1:] if axis == 1 else missing[:, :, 1:]
            missing = np.maximum(before, after)
    gap = missing.min(axis=0)
    lowered = top.copy()
    contexts, rows = gap.shape
    for i in (0, 1) if top.shape[0] > 1 else (0,):
        for j in (0, 1) if top.shape[1] > 1 else (0,):
            part = lowered[i : i + contexts, j : j + rows]
            np.minimum(part, top[i : i + contexts, j : j + rows] - gap, out=part)
    return lowered


def spread(table: Floats, micro_batches: int) -> Floats:
    """From rows of a micro-batch to rows in flight, straight lines between."""
    if micro_batches == 1:
        return table
    rows = np.arange((table.shape[1] - 1) * micro_batches + 1)
    below, part = rows // micro_batches, (rows % micro_batches) / micro_batches
    above = np.minimum(below + 1, table.shape[1] - 1)
    return table[:, below] * (1 - part) + table[:, above] * part


def lowest(family: Sequence[Floors]) -> Floors:
    """Floors of a family: the least of its members wherever any of them reaches.

    Members must share their contexts (those of one workload do). Memory becomes one limit, the rows with which the
    roomiest member still fits; tokens are left out.
    """
    encode = _least([member.encode_s[None] for member in family])[0]
    memories = [member.memory for member in family if member.memory is not None]
    memory = None
    if len(memories) == len(family):
        most = max(member.most_rows for member in memories)
        one, none = np.ones(1), np.zeros(1)
        # Where no member holds its weights, a fixed share of 2 rules everything out.
        fixed = none if most >= 0 else 2 * one
        if np.isfinite(most):
            memory = MemoryFloor(fixed, one if most >= 0 else none, none, max(most, 1e-9) * one)
    return Floors(
        encode,
        family[0].contexts,
        _least([member.decode_s for member in family]),
        _least([member.drain_s for member in family]),
        memory,
    )


def _least(tables: Sequence[Floats]) -> Floats:
    """Pointwise over the columns that each table has."""
    least = np.full((tables[0].shape[0], max(table.shape[1] for table in tables)), np.inf)
    for table in tables:
        part = least[:, : table.shape[1]]
        np.minimum(part, table, out=part)
    return least
