"""Bounds of every placement of a copy at once: what no split of the layers over its devices can undercut.

Let w_t be the share of layers that run at degree t, x_t the time of one layer there, and P0 .. P1 the number of stages.
A row's path takes at least S = L sum_t w_t x_t and P0 - 1 hand-overs. The slowest stage takes at least M = S / P1, and,
since a stage of degree t keeps t of G devices busy, at least L sum_t w_t t x_t / G. Encode takes (m_E - 1) M + S, an
iteration the longer of m_D M and S. Each choice among these is linear in w, so whatever the placement, its period and
its latency are at least the same mixture of those of pure degrees: a linear program of two rows per box, solved in
closed form. Devices of several kinds have no such mixture; for them the rates of all devices add up, which is looser
(scheduling.md, 2.6 i).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from solver.facts.cluster import Level
from solver.facts.workload import Floats
from solver.plan.memory import LEAST_VIEW_SHARE
from solver.search.placement.pools import Pool
from solver.search.proof.bounds import RraBounds
from solver.search.proof.boxes import Bounds, BoxBounds, Boxes
from solver.search.proof.floors import Floors, MemoryFloor, below_maximum, spread
from solver.search.setting import Setting
from solver.simulate.costs import UnitCosts


@dataclasses.dataclass(frozen=True)
class Family:
    """Placements that are bounded together.

    Attributes:
      stages: fewest and most.
      encode_micro_batches, decode_micro_batches: m_E and m_D.
    """

    stages: tuple[int, int]
    encode_micro_batches: int
    decode_micro_batches: int


@dataclasses.dataclass(frozen=True)
class _Facet:
    """One choice among the linear bounds.

    Attributes:
      shared: the slowest stage by busy devices; else by the path over the stages.
      paced: an iteration takes m_D M; else S.
    """

    shared: bool
    paced: bool


def family_bounds(setting: Setting, pools: Sequence[Pool], family: Family) -> Bounds:
    """Bounds of all placements of a family on the devices of one copy."""
    if len(pools) == 1:
        return MixedBounds(setting, pools[0], family)
    return _rra_bounds(setting, _summed_floors(setting, pools, family))


class MixedBounds:
    """Mixtures of degrees on devices of one kind."""

    def __init__(self, setting: Setting, pool: Pool, family: Family) -> None:
        self._latency_s = setting.limits.latency_s
        units = [setting.units[pool.kind, degree] for degree in setting.degrees(pool)]
        m_d, most = family.decode_micro_batches, family.stages[1]
        # Below as many micro-batches as stages the path is the longer one, above it the bottleneck.
        facets = [_Facet(True, False)] if m_d < most or m_d == 1 else []
        facets += [_Facet(True, True), _Facet(False, True)] if m_d > 1 else []
        self._pure = [
            [_rra_bounds(setting, _pure_floors(setting, pool, unit, family, facet)) for unit in units]
            for facet in facets
        ]

    def bound(self, boxes: Boxes, with_tpot: bool) -> BoxBounds:
        """Bounds of every box."""
        found = [self._mixed([pure.bound(boxes, with_tpot) for pure in each]) for each in self._pure]
        return BoxBounds(
            throughput_rps=np.minimum.reduce([bound.throughput_rps for bound in found]),
            **{
                name: np.maximum.reduce([getattr(bound, name) for bound in found])
                for name in ("latency_s", "ttft_s", "tpot_s", "memory_share")
            },
        )

    def _mixed(self, pure: list[BoxBounds]) -> BoxBounds:
        """The best mixture that the latency bound allows; the least of each other figure."""
        period = np.stack([1 / bound.throughput_rps for bound in pure])
        latency = np.stack([bound.latency_s for bound in pure])
        within = latency <= self._latency_s
        least = np.where(within, period, np.inf).min(axis=0)
        for quick in range(len(pure)):
            for slow in range(len(pure)):
                mixes = within[quick] & ~within[slow] & (period[slow] < period[quick])
                span = np.where(mixes, latency[slow] - latency[quick], 1.0)
                share = np.where(mixes, (self._latency_s - latency[quick]) / span, 0.0)
                least = np.minimum(least, period[quick] + share * np.where(mixes, period[slow] - period[quick], 0.0))
        return BoxBounds(
            throughput_rps=1 / least,
            latency_s=latency.min(axis=0),
            ttft_s=np.minimum.reduce([bound.ttft_s for bound in pure]),
            tpot_s=np.minimum.reduce([bound.tpot_s for bound in pure]),
            memory_share=np.minimum.reduce([bound.memory_share for bound in pure]),
        )


def _rra_bounds(setting: Setting, floors: Floors) -> RraBounds:
    # Latency is limited by the mixture, so that a pure degree's latency is not cut off here.
    return RraBounds(floors, setting.lengths, setting.conditions, setting.most_iterations)


def _pure_floors(setting: Setting, pool: Pool, unit: UnitCosts, family: Family, facet: _Facet) -> Floors:
    """As if every layer ran at the unit's degree, and were divided as finely as one likes."""
    every = [setting.units[pool.kind, degree] for degree in setting.degrees(pool)]
    fewest, most = family.stages
    m_e, m_d = family.encode_micro_batches, family.decode_micro_batches

    def factor(path: float, slowest: float, tensor: int) -> float:
        """Of a layer's time, in path x S + slowest x M."""
        return path + slowest * (tensor / pool.devices if facet.shared else 1 / most)

    def total(path: float, slowest: float, layer: Floats, ends: Sequence[Callable[[UnitCosts], Floats]]) -> Floats:
        """All layers at this degree; what occurs at the ends and between stages at whatever degree does it in least."""
        found = setting.layers * factor(path, slowest, unit.tensor) * layer
        for end in ends:
            found = found + np.minimum.reduce([factor(path, slowest, u.tensor) * end(u) for u in every])
        return found

    encode = total(
        1.0, m_e - 1.0, unit.encode_s,
        (lambda u: u.embed_encode_s, lambda u: u.head_encode_s, lambda u: _hops(u.hand_over_encode_s, fewest)),
    )  # fmt: skip
    reach = -(-setting.most_rows // m_d) + 1
    decode = total(
        0.0 if facet.paced else 1.0, float(m_d) if facet.paced else 0.0, unit.decode_s,
        (lambda u: u.embed_decode_s, lambda u: u.head_decode_s, lambda u: _hops(u.hand_over_decode_s, fewest)),
    )  # fmt: skip
    decode_s = spread(decode[:, :reach], m_d)
    call_s = min(other.phase_s for other in every)
    rows = np.arange(setting.most_rows + 1) / m_e
    memory = _memory(setting, [pool], [every])
    return Floors(_at(encode, rows), unit.contexts, decode_s, np.full_like(decode_s, call_s), memory)


def _hops(links: Mapping[Level, Floats], stages: int) -> Floats:
    """Hand-overs between so many stages, over the quickest link for each number of rows."""
    return (stages - 1) * np.minimum.reduce(list(links.values()))


def _summed_floors(setting: Setting, pools: Sequence[Pool], family: Family) -> Floors:
    """Several kinds: the bottleneck if the layers per second of all devices add up, the path at the quickest unit."""
    choices = [[setting.units[pool.kind, degree] for degree in setting.degrees(pool)] for pool in pools]
    layers = setting.layers
    m_e, m_d = family.encode_micro_batches, family.decode_micro_batches

    def rows_s(part: Callable[[UnitCosts], Floats]) -> tuple[Floats, Floats]:
        """(bottleneck, path) by rows of a micro-batch."""
        least = np.minimum.reduce([part(unit) for units in choices for unit in units])
        rate = np.zeros_like(least)
        for pool, units in zip(pools, choices, strict=True):
            device_s = np.minimum.reduce([unit.tensor * part(unit) for unit in units])
            rate = rate + pool.devices / np.maximum(device_s, 1e-300)
        return layers / rate * (least > 0), layers * least

    slowest, path = rows_s(lambda unit: unit.encode_s)
    rows = np.arange(len(path)) / m_e
    encode_s = _at(path, rows) + (m_e - 1) * _at(slowest, rows)
    reach = -(-setting.most_rows // m_d) + 1
    slowest, path = rows_s(lambda unit: unit.decode_s[:, :reach])
    decode_s = spread(below_maximum(np.stack([m_d * slowest, path])), m_d)
    call_s = min(unit.phase_s for units in choices for unit in units)
    memory = _memory(setting, pools, choices)
    return Floors(encode_s, choices[0][0].contexts, decode_s, np.full_like(decode_s, call_s), memory)


def _memory(setting: Setting, pools: Sequence[Pool], choices: Sequence[Sequence[UnitCosts]]) -> MemoryFloor:
    """All devices of a copy as one: the bytes of the whole model, at the degree that stores least."""
    every = [unit for units in choices for unit in units]
    layers, slots = setting.layers, setting.conditions.cache_layout == "slots"
    token = layers * min(unit.tensor * unit.cache_token_bytes for unit in every)
    weights = layers * min(unit.tensor * unit.weights_bytes for unit in every)
    capacity = sum(pool.devices * setting.usable_bytes(pool.kind) for pool in pools)
    row = float(token * setting.conditions.cache_tokens * slots)
    return MemoryFloor(
        fixed_bytes=np.array([weights - LEAST_VIEW_SHARE * row]),
        row_bytes=np.array([(1 + LEAST_VIEW_SHARE) * row]),
        token_bytes=np.array([float(token * (not slots))]),
        capacity_bytes=np.array([capacity]),
    )


def _at(table: Floats, rows: Floats) -> Floats:
    below = np.minimum(rows.astype(np.int64), len(table) - 2)
    part = rows - below
    return table[below] * (1 - part) + table[below + 1] * part
