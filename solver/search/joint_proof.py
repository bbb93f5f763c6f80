"""The proof over placements: branch and bound whose nodes are families of placements, best first.

A family's bound is the optimum over (B_E, N_D) of what none of its placements undercuts. The family with the highest
bound is cut into parts until that bound does not exceed the incumbent, or until so many families were bounded.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence

import numpy as np

from solver.facts.workload import Ints
from solver.search.family import Family, all_families, parts
from solver.search.family_bounds import family_bounds
from solver.search.family_memory import FamilyMemory
from solver.search.outcome import Best, Report, Tally
from solver.search.placement.pools import Pool, replica_counts, share_pools
from solver.search.proof.boxes import Bounds, Boxes
from solver.search.proof.branch_and_bound import Evaluate, search
from solver.search.setting import Setting
from solver.simulate.points import Points

# Parts of families that are bounded, beyond the families at the start.
MOST_PARTS = 256
# Boxes of (B_E, N_D) bounded for one family.
_NODES = 20_000
# Share to which a family's optimum is found.
_ACCURACY = 1e-5


@dataclasses.dataclass(frozen=True, order=True)
class _Open:
    """A family that may hold something better than the incumbent; highest bound first.

    Attributes:
      less_rps: its bound, negative.
      number: in order of being found.
      known: the bound is its own, and not that of the family which it is a part of.
      copies: how many there are of its placements.
    """

    less_rps: float
    number: int
    known: bool = dataclasses.field(compare=False)
    copies: int = dataclasses.field(compare=False)
    family: Family = dataclasses.field(compare=False)


def bound_placements(setting: Setting, tally: Tally, best: Best | None, evaluate: Evaluate, report: Report) -> float:
    """The largest bound of any placement that may still beat the incumbent; 0 where none does, requests per second.

    `evaluate`: exact predictions on whatever placement, of which the rows to allocate are those of every placement.
    """
    beat_rps = best.rps if best else 0.0
    shares = {copies: share_pools(setting.pools, copies)[0] for copies in replica_counts(setting.pools)}
    waiting: list[_Open] = []
    for copies, pools in shares.items():
        devices = sum(pool.devices for pool in pools)
        # On one device the uniform placement is all there is, and was searched.
        for family in all_families(min(setting.layers, devices)) if devices > 1 else ():
            heapq.heappush(waiting, _Open(-math.inf, len(waiting), False, copies, family))
    left = number = len(waiting) + MOST_PARTS
    while waiting and -waiting[0].less_rps > beat_rps * (1 + setting.request.gap):
        if tally.left_s <= 0:
            tally.complete = False
            break
        top = heapq.heappop(waiting)
        pools = shares[top.copies]
        if top.known:
            found = _parts(setting, pools, top.family)
            if not found or left <= 0:
                heapq.heappush(waiting, top)
                break
            for family in found:
                number += 1
                heapq.heappush(waiting, _Open(top.less_rps, number, False, top.copies, family))
            continue
        bounds, memory = family_bounds(setting, pools, top.family)
        rps = _optimum(setting, bounds, memory, evaluate, tally, beat_rps / top.copies) * top.copies
        left -= 1
        if rps > 0:
            heapq.heappush(waiting, dataclasses.replace(top, less_rps=max(top.less_rps, -rps), known=True))
        report(tally.nodes, best.rps if best else None, max(beat_rps, -waiting[0].less_rps if waiting else 0.0))
    bound_rps = max(beat_rps, -waiting[0].less_rps) if waiting else beat_rps
    tally.note(best.rps if best else None, bound_rps)
    return bound_rps if waiting else 0.0


def _parts(setting: Setting, pools: Sequence[Pool], family: Family) -> list[Family]:
    """Devices of several kinds have no bounds that parts would sharpen."""
    if len(pools) > 1:
        return []
    return parts(family, setting.degrees(pools[0]), pools[0].devices, setting.layers)


def _optimum(
    setting: Setting, bounds: Bounds, memory: FamilyMemory, exactly: Evaluate, tally: Tally, beat_rps: float
) -> float:
    """The optimum over (B_E, N_D) of the bounds, where it exceeds `beat_rps`; else 0."""
    limits = dataclasses.replace(setting.limits, memory_bytes=(1.0,))
    with_tpot = math.isfinite(limits.tpot_s)

    def evaluate(batch: Ints, iterations: Ints) -> Points:
        found = bounds.bound(Boxes(batch, batch, iterations, iterations), with_tpot)
        nothing = np.zeros(len(batch))
        share = np.maximum(found.memory_share, memory.share(exactly(batch, iterations).max_rows, batch))
        return Points(
            batch, iterations, found.throughput_rps, found.latency_s, found.ttft_s, found.tpot_s, nothing, nothing,
            nothing, nothing, batch, share[None, :],
        )  # fmt: skip

    most = setting.most_rows
    found = search(
        bounds, evaluate, limits, ((1, most), (1, setting.most_iterations)),
        gap=max(setting.request.gap, _ACCURACY), time_limit_s=tally.left_s, incumbent=beat_rps or None,
        node_limit=_NODES,
    )  # fmt: skip
    tally.add(dataclasses.replace(found, complete=True))
    return found.bound if found.bound > beat_rps else 0.0
