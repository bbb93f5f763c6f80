"""Bounds for WAA: boxes of B_E and of the rows that decode may grow to (scheduling.md, 2.3 and 2.6 j).

The slower side sets the pace, so throughput is bounded by the best of each side alone. Decode settles at the first
number of rows that keeps up with encode, or at the best that its cap allows; both only move up with their causes, so a
box of candidates settles within a range of rows, and the least time over that range bounds every latency. The same
search as for RRA runs on these bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.search.proof.bounds import ROUNDING, SHARE_ROUNDING
from solver.search.proof.boxes import BoxBounds, Boxes
from solver.search.proof.floors import MemoryFloor, memory_floor
from solver.search.proof.range_minimum import RangeMinimum
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import iterations_s
from solver.simulate.lengths import Lengths, residents
from solver.simulate.points import Conditions
from solver.simulate.waa import Split


@dataclasses.dataclass(frozen=True, eq=False)
class WaaMemory:
    """Bytes that each side holds at least.

    Attributes:
      encode, decode: of their stages; `encode.row_bytes` is what one prompt of B_E waits with, twice.
    """

    encode: MemoryFloor
    decode: MemoryFloor

    def share(self, encode_batch: Floats, rows: Floats) -> Floats:
        """float64 [boxes]: of the capacity, on the fullest stage of either side."""
        none = np.zeros(len(rows))
        return np.maximum(self.encode.share(encode_batch, none), self.decode.share(rows, none))


def waa_memory(
    split: Split, lengths: Lengths, conditions: Conditions, encode_capacity: Sequence[float], decode: Sequence[float]
) -> WaaMemory:
    """Floors of both sides; `encode_capacity` and `decode` are bytes of a device of each of their stages."""
    return WaaMemory(
        encode=encode_memory(split.encode, lengths, conditions, encode_capacity),
        decode=decode_memory(split.decode, lengths, conditions, decode),
    )


def encode_memory(
    pipeline: Pipeline, lengths: Lengths, conditions: Conditions, capacity_bytes: Sequence[float]
) -> MemoryFloor:
    """Weights, and two batches of the longest prompts to hand over: `row_bytes` is what each prompt of B_E takes."""
    held = np.array([s.layers * s.unit.cache_token_bytes for s in pipeline.stages], np.float64)
    floor = memory_floor(pipeline, lengths, conditions, capacity_bytes)
    return dataclasses.replace(floor, row_bytes=2 * held * lengths.workload.most_input, token_bytes=0 * held)


def decode_memory(
    pipeline: Pipeline, lengths: Lengths, conditions: Conditions, capacity_bytes: Sequence[float]
) -> MemoryFloor:
    """Weights and cache; where tokens are counted, as many for each row as residents have at least.

    Over a cycle residents hold the mean context each, and a batch that joins holds its prompts; `row_bytes` takes the
    smaller, so that it holds of either number of rows. The quantile that is allocated exceeds the mean.
    """
    floor = memory_floor(pipeline, lengths, conditions, capacity_bytes)
    tokens = min(float(residents(lengths, 1).context[0]), float(lengths.input_alive[1:2].sum()))
    if conditions.overflow > 0.5:
        tokens = 0.0
    return dataclasses.replace(
        floor, row_bytes=floor.row_bytes + tokens * floor.token_bytes, token_bytes=0 * floor.token_bytes
    )


class WaaBounds:
    """Bounds of one split; the second variable of a box is the cap on decode rows.

    With `distinct`, candidates whose cap is higher than their rows ever settle count as refused: with the smallest such
    cap they are the same candidate, and the others are a plateau that a search would have to walk.
    """

    def __init__(
        self,
        split: Split,
        lengths: Lengths,
        conditions: Conditions,
        micro_batches: int = 1,
        memory: WaaMemory | None = None,
        distinct: bool = False,
    ) -> None:
        self._distinct = distinct
        self._lengths, self._memory, self._overflow = lengths, memory, conditions.overflow
        self._longest = lengths.decode_percentile(conditions.latency_percentile)
        self._most_encode = split.encode.most_rows
        batches = np.arange(1, self._most_encode + 1, dtype=np.float64)
        stages_s = split.encode.encode_s(batches)
        moved = max(s.layers * s.unit.cache_token_bytes for s in split.encode.stages) * lengths.mean_input
        move_s = split.move.transfer_s(moved * batches)
        encode_rps = split.encode_replicas * batches / np.maximum(stages_s.max(axis=0), move_s)
        path_s = stages_s.sum(axis=0)
        self._encode = RangeMinimum(np.stack([path_s, path_s + move_s, move_s, encode_rps, -encode_rps], axis=1))

        rows = np.arange(1, split.decode.most_rows * micro_batches + 1, dtype=np.float64)
        context = residents(lengths, 1).context[:1]
        table_s = iterations_s(split.decode, rows[None, :], context, np.array([float(micro_batches)])).apart_s[0]
        ending = split.decode_replicas * rows / (max(lengths.mean_decode, 1e-300) * table_s)
        self._best_rps = np.maximum.accumulate(ending)
        self._at_best = np.maximum.accumulate(np.where(ending >= self._best_rps, np.arange(len(rows)), 0))
        # Entry r is the time at r rows; below one row it falls to nothing.
        self._decode = RangeMinimum(np.concatenate([[0.0], table_s]))
        after = np.flatnonzero(np.diff(lengths.alive, append=0.0) < 0)
        skipped = 0 if lengths.first_token == "encode" else 1
        kept = after - skipped >= 1
        self._steps, self._weight = after[kept] - skipped, -np.diff(lengths.alive, append=0.0)[after[kept]]
        self._tpot_share = conditions.tpot_percentile / 100
        self._skipped = skipped

    def bound(self, boxes: Boxes, with_tpot: bool) -> BoxBounds:
        """Bounds of every box."""
        first = np.minimum(boxes.first_low, self._most_encode) - 1
        last = np.minimum(boxes.first_high, self._most_encode) - 1
        path_s, moved_s, move_s, least_rps, most_rps = self._encode.least(first, last).T
        most_rps = -most_rps
        cap_low, cap_high = (np.minimum(cap, len(self._best_rps)) - 1 for cap in (boxes.second_low, boxes.second_high))
        low_rows = self._settled(least_rps * (1 - ROUNDING), cap_low) - 1  # it may lie between two whole numbers
        high_rows = self._settled(most_rps * (1 + ROUNDING), cap_high)
        iteration_s = self._decode.least(low_rows, high_rows)
        latency_s = moved_s + (self._longest + 1) * iteration_s if self._longest else path_s
        ttft_s = path_s if not self._skipped else moved_s + 2 * iteration_s
        share = np.zeros(len(boxes))
        if self._memory is not None:
            batch = boxes.first_low.astype(np.float64)
            # At least B_E rows join, and the peak of residents is at least their mean.
            rows = np.maximum(batch, low_rows * (1 - ROUNDING) - 1)
            share = self._memory.share(batch, rows) * (1 - ROUNDING)
        refused = boxes.first_low > self._most_encode
        if self._distinct:
            everything = np.full(len(boxes), len(self._best_rps) - 1)
            refused |= boxes.second_low > self._settled(most_rps * (1 + ROUNDING), everything)
        return BoxBounds(
            throughput_rps=np.minimum(most_rps, self._best_rps[cap_high]) * (1 + ROUNDING),
            latency_s=latency_s * (1 - ROUNDING),
            ttft_s=ttft_s * (1 - ROUNDING),
            tpot_s=self._tpot(iteration_s, move_s) * (1 - ROUNDING) if with_tpot else np.zeros(len(boxes)),
            memory_share=np.where(refused, np.inf, share),
        )

    def _settled(self, rate_rps: Floats, cap: Ints) -> Ints:
        """Whole rows, at least 1, at which decode keeps up with such a rate, or does its best."""
        return np.minimum(np.searchsorted(self._best_rps, rate_rps), self._at_best[cap]) + 1

    def _tpot(self, iteration_s: Floats, move_s: Floats) -> Floats:
        """Quantile over requests; each waits for one iteration more than it runs, and for the hand-over before it."""
        if not len(self._steps):
            return np.zeros(len(iteration_s))
        if self._skipped:
            return iteration_s
        # (d + 1) T / d and move / d fall with d, so the quantile is that of a length.
        order = np.argsort(-self._steps)
        below = np.cumsum(self._weight[order]) / self._weight.sum()
        at = min(int((below < self._tpot_share - SHARE_ROUNDING).sum()), len(order) - 1)
        steps = float(self._steps[order][at])
        return (iteration_s * (steps + 1) + move_s) / steps
