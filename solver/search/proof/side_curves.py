"""What one side of a split takes at least, by the rate that it has to keep up: tables that rule pairs of sides out.

A candidate of throughput x has an encode batch that comes at x or faster, and decode rows that end at x; both move up
with x. So the least path of encode and the least iteration of decode at a rate bound the latency of every candidate of
that throughput, and the highest rate at which the limits can still be kept bounds the pair (scheduling.md, 2.6 j).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.cluster import Link
from solver.facts.workload import Floats
from solver.search.proof.waa_bounds import decode_memory, encode_memory
from solver.search.proof.waa_decode_floors import HeldFloors, exact_s
from solver.search.setting import Setting
from solver.search.uniform import Placed
from solver.simulate.waa import move_s

# Rates that are tabulated, in requests per second: from the least to the most, in equal ratios of 1.02.
_LEAST_RPS, _MOST_RPS, _RATES = 1e-4, 1e6, 1200
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class EncodeCurve:
    """Least times of the encode side at every tabulated rate; infinite beyond what it can do.

    Attributes:
      path_s, moved_s: float64 [rates]: through its stages, and with the hand-over behind them.
      move_s: float64 [rates]: of the hand-over alone.
      most_rps: of all its replicas.
    """

    path_s: Floats
    moved_s: Floats
    move_s: Floats
    most_rps: float


@dataclasses.dataclass(frozen=True, eq=False)
class DecodeCurve:
    """Least time of an iteration of decode at every tabulated rate; infinite beyond what it can do."""

    iteration_s: Floats
    most_rps: float


class Rates:
    """The tabulated rates, and what the limits say of them."""

    def __init__(self, setting: Setting) -> None:
        self.rps = np.concatenate([[0.0], np.geomspace(_LEAST_RPS, _MOST_RPS, _RATES)])
        self._limits, self._lengths = setting.limits, setting.lengths
        self._longest = setting.lengths.decode_percentile(setting.conditions.latency_percentile)

    def bound_rps(self, encode: EncodeCurve, decode: DecodeCurve) -> float:
        """Throughput that no candidate of the pair exceeds; 0 where none keeps the limits."""
        limits, iteration_s = self._limits, decode.iteration_s
        if self._longest:
            latency_s = encode.moved_s + (self._longest + 1) * iteration_s
        else:
            latency_s = encode.path_s
        first_s = encode.path_s if self._lengths.first_token == "encode" else encode.moved_s + 2 * iteration_s
        keep = 1 + _ROUNDING
        kept = np.isfinite(iteration_s) & np.isfinite(encode.path_s)
        kept &= (latency_s <= limits.latency_s * keep) & (first_s <= limits.ttft_s * keep)
        if self._lengths.most_decode > 1:
            kept &= iteration_s <= limits.tpot_s * keep
        last = int(np.flatnonzero(kept)[-1]) if kept.any() else -1
        if last < 0:
            return 0.0
        above = float(self.rps[last + 1]) if last + 1 < len(self.rps) else np.inf
        return min(above, encode.most_rps, decode.most_rps) * keep


def encode_curve(setting: Setting, rates: Rates, placed: Placed, replicas: int, link: Link) -> EncodeCurve:
    """Of the encode batches that fit into memory."""
    memory = encode_memory(placed.pipeline, setting.lengths, setting.conditions, placed.usable_bytes(setting))
    pipeline = placed.pipeline
    batches = np.arange(1, setting.most_rows + 1, dtype=np.float64)
    stages_s = pipeline.encode_s(batches)
    path_s = stages_s.sum(axis=0)
    hand_over_s = move_s(link, pipeline, setting.lengths, setting.padding, batches.astype(np.int64))
    rps = replicas * batches / np.maximum(stages_s.max(axis=0), hand_over_s)
    fits = memory.share(batches, np.zeros(len(batches))) <= 1 + _ROUNDING
    rps, path_s, hand_over_s = rps[fits], path_s[fits], hand_over_s[fits]
    order = np.argsort(-rps, kind="stable")
    # Of the batches from the fastest on, those that reach a rate.
    reach = np.searchsorted(-rps[order], -rates.rps * (1 - _ROUNDING), side="right")

    def least(seconds: Floats) -> Floats:
        return np.concatenate([[np.inf], np.minimum.accumulate(seconds[order])])[reach]

    return EncodeCurve(least(path_s), least(path_s + hand_over_s), least(hand_over_s), float(rps.max(initial=0.0)))


def decode_curve(setting: Setting, rates: Rates, placed: Placed, replicas: int, micro_batches: int) -> DecodeCurve:
    """Of the rows that fit into memory."""
    lengths = setting.lengths
    memory = decode_memory(placed.pipeline, lengths, setting.conditions, placed.usable_bytes(setting))
    rows = np.arange(1, min(setting.most_rows, placed.pipeline.most_rows * micro_batches) + 1, dtype=np.float64)
    if setting.padding is None:
        table_s = exact_s(placed.pipeline, lengths, rows, micro_batches)
    else:
        floors = HeldFloors(placed.pipeline, replicas, lengths, micro_batches)
        table_s = floors.table_s(placed.pipeline.most_rows)[: len(rows)]
    best_rps = np.maximum.accumulate(replicas * rows / (max(lengths.mean_decode, 1e-300) * table_s))
    # Rows may settle anywhere above the whole number before the first that keeps up, at no less than the least beyond.
    before = np.concatenate([[0.0], table_s[:-1]])
    beyond_s = np.append(np.minimum.accumulate(np.minimum(before, table_s)[::-1])[::-1], np.inf)
    first = np.searchsorted(best_rps, rates.rps * (1 - _ROUNDING))
    # Memory holds at least the rows below; what is settled at rows r is at index r - 1 or r.
    fits = memory.share(np.maximum(np.arange(len(rows) + 1.0) - 1, 0.0), np.zeros(len(rows) + 1)) <= 1 + _ROUNDING
    most_rps = float(best_rps[fits[:-1]].max(initial=0.0))
    return DecodeCurve(np.where(fits, beyond_s, np.inf)[first], most_rps)
