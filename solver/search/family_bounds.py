"""Bounds of every placement of a family at once: what no split of the layers over a copy's devices can undercut.

Let w_t be the share of layers that run at degree t, x_t the time of one layer there, and P0 .. P1 the number of stages.
A row's path takes at least S = L sum_t w_t x_t and P0 - 1 hand-overs. The slowest stage takes at least M = S / P1, and,
since a stage of degree t keeps t of G devices busy, at least L sum_t w_t t x_t / G; where n_t stages have degree t,
also L w_t x_t / n_t for each of them, in whole layers where there is one degree. Encode takes (m_E - 1) M + S, an
iteration the longer of m_D M and S. Each choice among these, a facet, is linear in w, so whatever the placement, its
period and its latency are at least the same mixture of those at the corners of what w can be: a linear program of two
rows per box and facet, solved in closed form, and for two corners one program of all facets. Devices of several kinds
have no such mixture; for them the rates of all devices add up, which is looser (scheduling.md, 2.6 i).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from solver.facts.cluster import Level
from solver.facts.workload import Floats
from solver.search.alike_floors import alike_floors, at_rows
from solver.search.family import Family
from solver.search.family_memory import FamilyMemory, family_memory
from solver.search.placement.pools import Pool
from solver.search.proof.bounds import RraBounds
from solver.search.proof.boxes import Bounds, BoxBounds, Boxes
from solver.search.proof.floors import Floors, MemoryFloor, below_maximum, spread
from solver.search.setting import Setting
from solver.simulate.costs import UnitCosts


@dataclasses.dataclass(frozen=True)
class _Facet:
    """One choice among the linear bounds.

    Attributes:
      layers: of each degree: the slowest stage takes at least the sum of these shares of its layers' time.
      ends: likewise of what occurs at the ends and between stages.
      paced: an iteration takes m_D M; else S.
    """

    layers: tuple[float, ...]
    ends: tuple[float, ...]
    paced: bool


def family_bounds(setting: Setting, pools: Sequence[Pool], family: Family) -> tuple[Bounds, FamilyMemory]:
    """Bounds of all placements of a family on the devices of one copy."""
    if len(pools) == 1:
        bounds = MixedBounds(setting, pools[0], family)
        if family.counts is not None and len(family.counts) == 1:
            unit = setting.units[pools[0].kind, family.counts[0][0]]
            return _rra_bounds(setting, alike_floors(setting, unit, family, bounds.memory.floor)), bounds.memory
        return bounds, bounds.memory
    capacity_bytes = sum(pool.devices * setting.usable_bytes(pool.kind) for pool in pools)
    units = [setting.units[pool.kind, degree] for pool in pools for degree in setting.degrees(pool)]
    memory = family_memory(setting, capacity_bytes, units, family)
    return _rra_bounds(setting, _summed_floors(setting, pools, family, memory.floor)), memory


class MixedBounds:
    """Mixtures of degrees on devices of one kind.

    Attributes:
      memory: of the family.
    """

    def __init__(self, setting: Setting, pool: Pool, family: Family) -> None:
        self._latency_s = setting.limits.latency_s
        degrees = setting.degrees(pool) if family.counts is None else [tensor for tensor, _ in family.counts]
        units = [setting.units[pool.kind, degree] for degree in degrees]
        devices = pool.devices
        if family.counts is not None:
            devices = sum(tensor * count for tensor, count in family.counts)
        self.memory = family_memory(setting, devices * setting.usable_bytes(pool.kind), units, family)
        self._corners = [
            [
                _rra_bounds(setting, _corner_floors(setting, units, family, facet, corner, self.memory.floor))
                for corner in _corners(family, len(units), setting.layers)
            ]
            for facet in _facets(family, degrees, devices, setting.layers, _balance(family, units))
        ]

    def bound(self, boxes: Boxes, with_tpot: bool) -> BoxBounds:
        """Bounds of every box."""
        found = [[corner.bound(boxes, with_tpot) for corner in each] for each in self._corners]
        period = np.array([[1 / bound.throughput_rps for bound in each] for each in found])
        latency = np.array([[bound.latency_s for bound in each] for each in found])
        least = _on_edge if period.shape[1] == 2 else _by_facet
        return BoxBounds(
            throughput_rps=1 / least(period, latency, self._latency_s),
            **{
                name: np.maximum.reduce([np.minimum.reduce([getattr(b, name) for b in each]) for each in found])
                for name in ("latency_s", "ttft_s", "tpot_s", "memory_share")
            },
        )


def _by_facet(period: Floats, latency: Floats, limit_s: float) -> Floats:
    """Least period of mixtures that the limit allows, each facet on its own: [facets, corners, boxes] -> [boxes]."""
    within = latency <= limit_s
    least = np.where(within, period, np.inf).min(axis=1)
    for quick, slow in itertools.permutations(range(period.shape[1]), 2):
        mixes = within[:, quick] & ~within[:, slow] & (period[:, slow] < period[:, quick])
        span = np.where(mixes, latency[:, slow] - latency[:, quick], 1.0)
        share = np.where(mixes, (limit_s - latency[:, quick]) / span, 0.0)
        gain = np.where(mixes, period[:, slow] - period[:, quick], 0.0)
        least = np.minimum(least, period[:, quick] + share * gain)
    return np.asarray(least.max(axis=0))


def _on_edge(period: Floats, latency: Floats, limit_s: float) -> Floats:
    """Least period of the mixtures of two corners that the limit allows, by all facets: [facets, 2, boxes] -> [boxes].

    The greatest of lines is least at an end of what latency allows, or where two of them cross.
    """
    rise_s = latency[:, 1] - latency[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (limit_s - latency[:, 0]) / rise_s
    low = np.where(rise_s < 0, crossing, 0.0).max(axis=0).clip(0.0)
    high = np.where(rise_s > 0, crossing, 1.0).min(axis=0).clip(max=1.0)
    flat = (rise_s == 0) & (latency[:, 0] > limit_s)
    none = (low > high) | flat.any(axis=0)
    shares = [low, high]
    for one, other in itertools.combinations(range(len(period)), 2):
        slope = (period[one, 1] - period[one, 0]) - (period[other, 1] - period[other, 0])
        part = np.divide(period[other, 0] - period[one, 0], slope, out=np.zeros_like(slope), where=slope != 0)
        shares.append(np.clip(part, low, np.maximum(low, high)))
    share = np.stack(shares)[:, None]
    most = (period[:, 0] * (1 - share) + period[:, 1] * share).max(axis=1)
    return np.where(none, np.inf, most.min(axis=0))


def _rra_bounds(setting: Setting, floors: Floors) -> RraBounds:
    # Latency is limited by the mixture, so that a corner's latency is not cut off here.
    return RraBounds(floors, setting.lengths, setting.conditions, setting.most_iterations)


def _corners(family: Family, degrees: int, layers: int) -> list[tuple[float, ...]]:
    """Shares of layers at each degree, of which any placement of the family is a mixture."""
    if family.layers is not None:
        return [(1 - high / layers, high / layers) for high in sorted(set(family.layers))]
    # Of a degree that is known to occur, each stage has a layer at least.
    least = [0.0] * degrees if family.counts is None else [count / layers for _, count in family.counts]
    return [tuple(1 - sum(least) + own if i == j else own for j, own in enumerate(least)) for i in range(degrees)]


def _facets(
    family: Family, degrees: Sequence[int], devices: int, layers: int, balance: Sequence[float]
) -> list[_Facet]:
    """Every way to bound the slowest stage, with every way to bound an iteration that says something."""
    m_d, most = family.decode_micro_batches, family.stages[1]
    alike, busy = tuple(1 / most for _ in degrees), tuple(tensor / devices for tensor in degrees)
    none = tuple(0.0 for _ in degrees)
    slowest = [(alike, alike)]
    if len(degrees) > 1:
        slowest.append((busy, busy))
    if family.counts is not None and len(degrees) > 1:
        shares = [1 / count for _, count in family.counts]
        # Each stage as slow as every other, which is what a mean of them amounts to at the times of `balance`.
        slowest.append((tuple(part * share for part, share in zip(balance, shares, strict=True)), none))
        for place, share in enumerate(shares):
            slowest.append((tuple(share if i == place else 0.0 for i in range(len(degrees))), none))
    elif family.counts is not None:
        slowest.append(((-(-layers // most) / layers,), none))
    # Below as many micro-batches as stages the path is the longer one, above it the bottleneck.
    paces = ([False] if m_d < most or m_d == 1 else []) + ([True] if m_d > 1 else [])
    if family.encode_micro_batches == 1:
        # The slowest stage counts in neither part of an unpaced phase, so one facet says all.
        return [_Facet(*each, paced) for paced in paces for each in (slowest if paced else slowest[:1])]
    return [_Facet(*each, paced) for paced in paces for each in slowest]


def _balance(family: Family, units: Sequence[UnitCosts]) -> list[float]:
    """Share of the layers that each degree gets where all stages take equally long, at a batch of medium size."""
    if family.counts is None:
        return []
    speed = [
        count / float(unit.encode_s[unit.most_rows // 8 + 1])
        for (_, count), unit in zip(family.counts, units, strict=True)
    ]
    return [each / sum(speed) for each in speed]


def _corner_floors(
    setting: Setting,
    units: Sequence[UnitCosts],
    family: Family,
    facet: _Facet,
    corner: Sequence[float],
    memory: MemoryFloor,
) -> Floors:
    """As if layers were divided among the degrees as the corner has it, and among stages as finely as one likes."""
    m_e, m_d = family.encode_micro_batches, family.decode_micro_batches

    def total(
        path: float, slowest: float, layer: Sequence[Floats], ends: Sequence[Callable[[UnitCosts], Floats]]
    ) -> Floats:
        """path x S + slowest x M; what occurs at the ends and between stages does so at the degree that does it in
        least.
        """
        shares = [share * (path + slowest * part) for share, part in zip(corner, facet.layers, strict=True)]
        found = setting.layers * sum(share * seconds for share, seconds in zip(shares, layer, strict=True))
        for end in ends:
            factors = [path + slowest * part for part in facet.ends]
            found = found + np.minimum.reduce([f * end(u) for f, u in zip(factors, units, strict=True)])
        return np.asarray(found)

    fewest = family.stages[0]
    encode = total(
        1.0, m_e - 1.0, [u.encode_s for u in units],
        (lambda u: u.embed_encode_s, lambda u: u.head_encode_s, lambda u: _hops(u.hand_over_encode_s, fewest)),
    )  # fmt: skip
    reach = -(-setting.most_rows // m_d) + 1
    decode = total(
        0.0 if facet.paced else 1.0, float(m_d) if facet.paced else 0.0, [u.decode_s for u in units],
        (lambda u: u.embed_decode_s, lambda u: u.head_decode_s, lambda u: _hops(u.hand_over_decode_s, fewest)),
    )  # fmt: skip
    decode_s = spread(decode[:, :reach], m_d)
    call_s = min(unit.phase_s for unit in units)
    rows = np.arange(setting.most_rows + 1) / m_e
    return Floors(at_rows(encode, rows), units[0].contexts, decode_s, np.full_like(decode_s, call_s), memory)


def _hops(links: Mapping[Level, Floats], stages: int) -> Floats:
    """Hand-overs between so many stages, over the quickest link for each number of rows."""
    return (stages - 1) * np.minimum.reduce(list(links.values()))


def _summed_floors(setting: Setting, pools: Sequence[Pool], family: Family, memory: MemoryFloor) -> Floors:
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
    encode_s = at_rows(path, rows) + (m_e - 1) * at_rows(slowest, rows)
    reach = -(-setting.most_rows // m_d) + 1
    slowest, path = rows_s(lambda unit: unit.decode_s[:, :reach])
    decode_s = spread(below_maximum(np.stack([m_d * slowest, path])), m_d)
    call_s = min(unit.phase_s for units in choices for unit in units)
    return Floors(encode_s, choices[0][0].contexts, decode_s, np.full_like(decode_s, call_s), memory)
