"""Bounds for WAA: boxes of B_E and of the rows that decode may grow to (scheduling.md, 2.3 and 2.6 j).

The slower side sets the pace, so throughput is bounded by the best of each side alone, and the least time that an
iteration takes at the rows of a box (`proof.waa_decode_floors`) bounds every latency. The same search as for RRA runs
on these bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from solver.facts.workload import Floats
from solver.search.proof.bounds import ROUNDING, SHARE_ROUNDING
from solver.search.proof.boxes import BoxBounds, Boxes
from solver.search.proof.floors import MemoryFloor, memory_floor
from solver.search.proof.range_minimum import RangeMinimum
from solver.search.proof.waa_decode_floors import decode_floors
from solver.simulate.costs import Pipeline
from solver.simulate.lengths import Lengths, residents
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.waa import Split, encode_side


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

    `padding`: of a profile of padded shapes; `distinct` as in `SettledFloors`.
    """

    def __init__(
        self,
        split: Split,
        lengths: Lengths,
        conditions: Conditions,
        micro_batches: int = 1,
        memory: WaaMemory | None = None,
        distinct: bool = False,
        padding: Padding | None = None,
    ) -> None:
        self._lengths, self._memory = lengths, memory
        self._longest = lengths.decode_percentile(conditions.latency_percentile)
        self._most_encode = split.encode.most_rows
        batches = np.arange(1, self._most_encode + 1)
        path_s, moved_s, encode_rps = encode_side(split, lengths, padding, batches)
        self._encode = RangeMinimum(np.stack([path_s, path_s + moved_s, moved_s, encode_rps, -encode_rps], axis=1))
        self._decode = decode_floors(split.decode, split.decode_replicas, lengths, padding, micro_batches, distinct)
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
        path_s, moved_s, apart_s, least_rps, most_rps = self._encode.least(first, last).T
        most_rps = -most_rps
        reach = self._decode.over(boxes, least_rps, most_rps)
        iteration_s = reach.iteration_s
        latency_s = moved_s + (self._longest + 1) * iteration_s if self._longest else path_s
        ttft_s = path_s if not self._skipped else moved_s + 2 * iteration_s
        share = np.zeros(len(boxes))
        if self._memory is not None:
            share = self._memory.share(boxes.first_low.astype(np.float64), reach.rows) * (1 - ROUNDING)
        refused = reach.refused | (boxes.first_low > self._most_encode)
        return BoxBounds(
            # Encode's part is the very number that candidates have.
            throughput_rps=np.minimum(most_rps, reach.most_rps * (1 + ROUNDING)),
            latency_s=latency_s * (1 - ROUNDING),
            ttft_s=ttft_s * (1 - ROUNDING),
            tpot_s=self._tpot(iteration_s, apart_s) * (1 - ROUNDING) if with_tpot else np.zeros(len(boxes)),
            memory_share=np.where(refused, np.inf, share),
        )

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
