"""The paper's Algorithm 1, kept as a baseline: branch and bound that trusts both controls to be monotone.

Throughput and latency are taken to rise with B_E and to fall with N_D, so a block of candidates is judged by two of its
corners: the optimistic one (largest B_E, smallest N_D) has its highest throughput, the pessimistic one its least
latency. On measured profiles neither is so, and the result is a schedule without a certificate, a worse one than there
is, or none (scheduling.md, 1.6 item 7). Written anew from that description: a tolerance loosens the pruning, the block
list is sorted by lower bound, the other two corners are evaluated and never become incumbents, and feasible optimistic
corners do not end a block. Only the missing stop at unit blocks is added, without which it does not end.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math

import numpy as np

from solver.search.proof.boxes import Box
from solver.search.proof.branch_and_bound import Candidate, Evaluate
from solver.search.proof.limits import Limits


@dataclasses.dataclass(frozen=True)
class Believed:
    """What Algorithm 1 returns: no bound, no gap.

    Attributes:
      best: (B_E, N_D), None where it found no schedule.
      throughput_rps: of it; 0 without one.
      evaluated: candidates.
    """

    best: Candidate | None
    throughput_rps: float
    evaluated: int


@dataclasses.dataclass(frozen=True)
class _Corner:
    throughput_rps: float
    latency_s: float
    kept: bool


def algorithm1(
    evaluate: Evaluate, limits: Limits, box: Box, tolerance: float = 0.0, evaluation_limit: int = 200_000
) -> Believed:
    """Searches the box. `tolerance`: the paper's eps, by which corners may miss before a block is dropped."""
    known: dict[Candidate, _Corner] = {}

    def corners(candidates: list[Candidate]) -> list[_Corner]:
        fresh = [candidate for candidate in dict.fromkeys(candidates) if candidate not in known]
        if fresh:
            points = evaluate(*(np.array(column, np.int64) for column in zip(*fresh, strict=True)))
            kept, share = limits.kept(points), limits.memory_share(points)
            for i, candidate in enumerate(fresh):
                # What does not fit into memory counts as too late, as everything larger would be.
                latency_s = float(points.latency_s[i]) if share[i] <= 1 else math.inf
                # Beyond what costs were tabulated for nothing is known; the best is hoped for.
                throughput_rps = float(points.throughput_rps[i]) or math.inf
                known[candidate] = _Corner(throughput_rps, latency_s, bool(kept[i]))
        return [known[candidate] for candidate in candidates]

    best: Candidate | None = None
    best_rps = 0.0
    (b_first, b_last), (n_first, n_last) = box
    waiting: list[tuple[float, tuple[int, int, int, int]]] = [(0.0, (b_first, b_last, n_first, n_last))]
    while waiting and len(known) < evaluation_limit:
        _, (b0, b1, n0, n1) = heapq.heappop(waiting)
        optimist, pessimist = (b1, n0), (b0, n1)
        high, low = corners([optimist, pessimist])
        if low.latency_s > limits.latency_s * (1 + tolerance) or high.throughput_rps < best_rps * (1 - tolerance):
            continue
        for candidate, corner in ((optimist, high), (pessimist, low)):
            if corner.kept and corner.throughput_rps > best_rps:
                best, best_rps = candidate, corner.throughput_rps
        if (b0, n0) == (b1, n1):
            continue
        blocks = _quarters(b0, b1, n0, n1)
        corners([corner for block in blocks for corner in itertools.product(block[:2], block[2:])])
        for block in blocks:
            heapq.heappush(waiting, (known[block[0], block[3]].throughput_rps, block))
    return Believed(best, best_rps, len(known))


def _quarters(b0: int, b1: int, n0: int, n1: int) -> list[tuple[int, int, int, int]]:
    b, n = (b0 + b1) // 2, (n0 + n1) // 2
    parts_b = [(b0, b)] + ([(b + 1, b1)] if b < b1 else [])
    parts_n = [(n0, n)] + ([(n + 1, n1)] if n < n1 else [])
    return [(*part_b, *part_n) for part_b in parts_b for part_n in parts_n]
