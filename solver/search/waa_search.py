"""WAA over splits and (B_E, decode rows) together: waa, waa-c, waa-m and disaggregated.

    divisions of the devices -> curves of either side: the least time at each rate -> pairs of sides, best bound first
        -> proof search over (B_E, cap on decode rows) of each, until no pair's bound beats the incumbent

Either side alone tells at which rates a pair can keep the limits at all, so thousands of pairs cost a table look-up
each, and a proof search runs on the few that are left. Placements are of one mould: equal pipelines on each side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from solver.facts.cluster import Link
from solver.facts.workload import Ints
from solver.plan.schedule import Policy
from solver.search.outcome import Best, Outcome, Report, Tally
from solver.search.proof.branch_and_bound import Found, search
from solver.search.proof.limits import Limits
from solver.search.proof.side_curves import Rates, decode_curve, encode_curve
from solver.search.proof.waa_bounds import WaaBounds, waa_memory
from solver.search.setting import Setting
from solver.search.splits import Division, Side, divisions
from solver.search.sweep import nearest_of, pick
from solver.search.uniform import Placed, micro_batch_counts
from solver.simulate.points import Points
from solver.simulate.waa import Split, evaluate_waa

# Pairs, and values of either variable, that are looked at for the nearest where nothing keeps the limits.
_NEAREST_PAIRS, _NEAREST_VALUES = 12, 12


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedSplit(Placed):
    """One copy whose devices are split: the stages of the first encode replica, then those of the first decode one.

    `pipeline` is the decode side's; `kinds` are those of all stages, as in the rows of a Points' memory.

    Attributes:
      split: both pipelines, the link between them, and how many replicas each side has.
    """

    split: Split = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two sides that work together.

    Attributes:
      copies: of the whole.
      link: that the sides hand over by.
      encode, decode: the sides.
      micro_batches: m_D.
      bound_rps: throughput of all copies that no candidate exceeds; 0 where none keeps the limits.
    """

    copies: int
    link: Link
    encode: Side
    decode: Side
    micro_batches: int
    bound_rps: float

    def place(self, setting: Setting) -> PlacedSplit:
        encode, decode = (side.place(setting, self.copies) for side in (self.encode, self.decode))
        replicas = self.encode.replicas, self.decode.replicas
        split = Split(encode.pipeline, decode.pipeline, self.link, *replicas)
        stages, kinds = encode.stages + decode.stages, encode.kinds + decode.kinds
        return PlacedSplit(self.copies, stages, decode.pipeline, kinds, *replicas, split=split)


def search_waa(setting: Setting, policy: Policy, tally: Tally, report: Report) -> Outcome:
    """The best schedule of a policy whose phases run apart, and a bound on all that its placements allow."""
    pairs, whole = _pairs(setting, policy, tally)
    if not pairs and whole:
        return Outcome(None, 0.0, "nothing", reason=f"{policy}: no pool of devices can be split; give 2 alike at least")
    best, open_rps = _search_pairs(setting, policy, pairs, tally, report)
    if not whole:
        open_rps = math.inf
    covers = f"{len(pairs)} pairs of equal pipelines, B_E and decode rows"
    bound_rps = max(open_rps, best.rps if best else 0.0)
    return Outcome(best, bound_rps, covers, None if best else _nearest(setting, policy, pairs))


def _search_pairs(
    setting: Setting, policy: Policy, pairs: list[Pair], tally: Tally, report: Report
) -> tuple[Best | None, float]:
    """The best of all pairs, and the bound of what the gap or a limit on time left open."""
    best, open_rps = None, 0.0
    for pair in pairs:
        if pair.bound_rps <= (best.rps * (1 + setting.request.gap) if best else 0.0):
            open_rps = max(open_rps, pair.bound_rps)
            break
        if tally.left_s <= 0:
            tally.complete = False
            open_rps = max(open_rps, pair.bound_rps)
            break
        placed = pair.place(setting)
        found = search_split(setting, placed, pair.micro_batches, tally.left_s, best.rps if best else None)
        tally.add(found)
        if found.best is not None and found.points is not None:
            best = Best(policy, placed, found.points, 1, pair.micro_batches, found.objective * pair.copies)
        if not found.complete or found.gap > 0:
            open_rps = max(open_rps, min(found.bound * pair.copies, pair.bound_rps))
        tally.note(best.rps if best else None, pair.bound_rps)
        report(tally.nodes, best.rps if best else None, pair.bound_rps)
    return best, open_rps


def search_split(
    setting: Setting, placed: PlacedSplit, micro_batches: int, time_limit_s: float, beat_rps: float | None
) -> Found:
    """Proof search over (B_E, cap on the rows of a decode replica) on one pair."""
    first = len(placed.split.encode.stages)
    capacity = placed.usable_bytes(setting)
    memory = waa_memory(placed.split, setting.lengths, setting.conditions, capacity[:first], capacity[first:])
    return search(
        WaaBounds(
            placed.split,
            setting.lengths,
            setting.conditions,
            micro_batches,
            memory,
            distinct=True,
            padding=setting.padding,
        ),
        waa_evaluator(setting, placed, micro_batches),
        limits_of(setting, placed),
        ((1, setting.most_rows), (1, setting.most_rows)),
        gap=setting.request.gap,
        node_limit=setting.request.node_limit,
        time_limit_s=time_limit_s,
        incumbent=None if beat_rps is None else beat_rps / placed.copies,
    )


def limits_of(setting: Setting, placed: PlacedSplit) -> Limits:
    return dataclasses.replace(setting.limits, memory_bytes=placed.usable_bytes(setting))


def waa_evaluator(setting: Setting, placed: PlacedSplit, micro_batches: int) -> Callable[[Ints, Ints], Points]:
    with_tpot = math.isfinite(setting.limits.tpot_s)
    rate_rps = None if setting.rate_rps is None else setting.rate_rps / placed.copies

    def evaluate(batch: Ints, rows: Ints) -> Points:
        return evaluate_waa(
            placed.split, setting.lengths, setting.conditions, batch, rows, micro_batches,
            memory=setting.memory, padding=setting.padding, rate_rps=rate_rps, with_tpot=with_tpot,
        )  # fmt: skip

    return evaluate


def _pairs(setting: Setting, policy: str, tally: Tally) -> tuple[list[Pair], bool]:
    """Every pair of sides and m_D, the best bound first; and whether time sufficed for all."""
    found: list[Pair] = []
    rates = Rates(setting)
    for division in divisions(setting, policy):
        if tally.left_s <= 0:
            tally.complete = False
            return found, False
        found += _paired(setting, rates, division)
    return sorted(found, key=lambda pair: -pair.bound_rps), True


def _paired(setting: Setting, rates: Rates, division: Division) -> Iterator[Pair]:
    link = setting.cluster.link(division.level)
    # Pipelines are dropped when their curves are drawn: those of a large cluster would fill the memory.
    encodes = [
        (side, encode_curve(setting, rates, side.place(setting, 1), side.replicas, link)) for side in division.encode
    ]
    decodes = [
        (side, micro_batches, decode_curve(setting, rates, placed, side.replicas, micro_batches))
        for side in division.decode
        for placed in (side.place(setting, 1),)
        for micro_batches in micro_batch_counts(len(side.groups))
    ]
    for encode, first in encodes:
        for decode, micro_batches, second in decodes:
            bound_rps = division.copies * rates.bound_rps(first, second)
            yield Pair(division.copies, link, encode, decode, micro_batches, bound_rps)


def _nearest(setting: Setting, policy: Policy, pairs: list[Pair]) -> Best | None:
    """A coarse look at pairs of every kind, for the candidate that comes nearest to the limits."""
    values = np.unique(np.round(np.geomspace(1, setting.most_rows, _NEAREST_VALUES)).astype(np.int64))
    batch, rows = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
    nearest: tuple[float, Best] | None = None
    for pair in pairs[:: max(1, len(pairs) // _NEAREST_PAIRS)]:
        placed = pair.place(setting)
        points = waa_evaluator(setting, placed, pair.micro_batches)(batch, rows)
        found = nearest_of(points, limits_of(setting, placed))
        if found is not None and (nearest is None or found[0] < nearest[0]):
            one = pick(points, found[1])
            rps = float(one.throughput_rps[0]) * pair.copies
            nearest = found[0], Best(policy, placed, one, 1, pair.micro_batches, rps)
    return None if nearest is None else nearest[1]
