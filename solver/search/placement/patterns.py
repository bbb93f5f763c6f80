"""From costs to patterns: every way in which a stage may look at one point of (B_E, N_D, micro-batches).

Times are whole nanoseconds rounded down, so that a bound proven on them is a bound on the real times; the pipeline that
`placement.layout` makes of a placement is evaluated exactly. Patterns that exceed a device's memory are dropped,
and those that a narrower one replaces without any loss.

A hand-over is charged by its own level: a pattern occurs once per level that its pool knows (inside the island; to
another island of the host; to another host). How many of each there must be is the placement's affair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from solver.facts.cluster import LEVELS, Level
from solver.facts.workload import Floats
from solver.plan.schedule import Role
from solver.search.placement.placement_problem import Pattern, Position
from solver.search.placement.pools import Pool, check_degrees
from solver.simulate.costs import UnitCosts

# Keeps a time that is a whole number of nanoseconds but for rounding from losing one; far below what rounding costs.
_NUDGE = 1e-4


@dataclasses.dataclass(frozen=True)
class Load:
    """What every stage is asked for at once.

    Attributes:
      phase: "encode": one encode micro-batch; "decode": one iteration of a decode micro-batch; "call": the fixed cost
        of a decode call.
      rows: of the micro-batch.
      context: decode: mean positions attended to.
    """

    phase: Literal["encode", "decode", "call"]
    rows: float = 0.0
    context: float = 0.0


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """What a device of a stage holds beside weights.

    Attributes:
      cache_tokens: token positions, of all rows together, that are allocated.
      layer_bytes: more, per layer of the stage.
      stage_bytes: more, per stage: temporaries, collectives.
      last_bytes: more, where the stage samples.
    """

    cache_tokens: float
    layer_bytes: float = 0.0
    stage_bytes: float = 0.0
    last_bytes: float = 0.0


def stage_bytes(unit: UnitCosts, layers: int, position: Position, need: MemoryNeed) -> int:
    """Per device of a stage."""
    first, last = position in ("first", "both"), position in ("last", "both")
    per_layer = unit.weights_bytes + need.cache_tokens * unit.cache_token_bytes + need.layer_bytes
    ends = (unit.embed_bytes if first else 0) + (unit.head_bytes + need.last_bytes if last else 0)
    return math.ceil(layers * per_layer + ends + need.stage_bytes)


@dataclasses.dataclass(frozen=True)
class LoadTimes:
    """What the parts of a stage take under one load, in seconds."""

    layer_s: float
    embed_s: float
    head_s: float
    hand_over_s: Mapping[Level, float]
    fixed_s: float = 0.0

    def stage_s(self, layers: int, position: Position, link: Level | None) -> float:
        total = self.fixed_s + layers * self.layer_s
        if position in ("first", "both"):
            total += self.embed_s
        if position in ("last", "both"):
            total += self.head_s
        return total + (self.hand_over_s[link] if link else 0.0)


def load_times(unit: UnitCosts, load: Load) -> LoadTimes:
    """Linear between whole rows and between knots of the context, as `Pipeline` does it."""
    if load.phase == "call":
        return LoadTimes(0.0, 0.0, 0.0, dict.fromkeys(LEVELS, 0.0), fixed_s=unit.phase_s)
    below, part = _split_rows(load.rows, unit.most_rows)

    def at(column: Floats) -> float:
        return float(column[below] * (1 - part) + column[below + 1] * part)

    if load.phase == "encode":
        links = {level: at(column) for level, column in unit.hand_over_encode_s.items()}
        return LoadTimes(at(unit.encode_s), at(unit.embed_encode_s), at(unit.head_encode_s), links)
    knots = unit.contexts
    layer = float(np.interp(load.context, knots, [at(row) for row in unit.decode_s]))
    links = {level: at(column) for level, column in unit.hand_over_decode_s.items()}
    return LoadTimes(layer, at(unit.embed_decode_s), at(unit.head_decode_s), links)


def _split_rows(rows: float, most: int) -> tuple[int, float]:
    if not 0 <= rows <= most:
        raise ValueError(f"rows: {rows:.6g} is beyond the {most} that costs were tabulated for")
    below = min(int(rows), most - 1)
    return below, rows - below


def _down(seconds: float) -> int:
    return math.floor(seconds * 1e9 + _NUDGE)


def make_patterns(
    units: Mapping[tuple[str, int], UnitCosts],
    pools: Sequence[Pool],
    layers: int,
    loads: Sequence[Load],
    needs: Mapping[Role, MemoryNeed],
    memory_bytes: Mapping[str, float],
    reduce: bool = True,
) -> tuple[Pattern, ...]:
    """Every useful pattern.

    Args:
      units: by (device kind, tensor degree).
      pools: of the cluster.
      layers: of the model.
      loads: an encode-only stage takes part in encode loads alone, a decode-only one in the others.
      needs: one entry per role that stages may have.
      memory_bytes: what a device of each kind may hold.
      reduce: leave out what a narrower pattern replaces; not where the number of compiled shapes is limited.

    Raises:
      ValueError: degrees do not pack into the islands.
    """
    found: list[Pattern] = []
    for index, pool in enumerate(pools):
        degrees = sorted(tensor for kind, tensor in units if kind == pool.kind and tensor <= pool.island_size)
        if not degrees:
            raise ValueError(f"profile: no costs for {pool.kind} in islands of {pool.island_size}; profile that kind")
        check_degrees(pool, degrees)
        for role, need in needs.items():
            for tensor in degrees:
                unit = units[pool.kind, tensor]
                found += _unit_patterns(unit, index, pools, role, layers, loads, need, memory_bytes[pool.kind])
    return without_dominated(found) if reduce else tuple(sorted(found, key=_order))


def _unit_patterns(
    unit: UnitCosts,
    pool: int,
    pools: Sequence[Pool],
    role: Role,
    layers: int,
    loads: Sequence[Load],
    need: MemoryNeed,
    memory_bytes: float,
) -> Iterator[Pattern]:
    takes_part = [role == "both" or (role == "encode") == (load.phase == "encode") for load in loads]
    active = [load_times(unit, load) if use else None for load, use in zip(loads, takes_part, strict=True)]
    for position, link in _places(pool, pools):
        for count in _layer_counts(position, layers):
            size = stage_bytes(unit, count, position, need)
            if size > memory_bytes:
                continue
            times = tuple(_down(parts.stage_s(count, position, link)) if parts else 0 for parts in active)
            yield Pattern(role, pool, unit.tensor, count, position, link, times, size)


def _places(pool: int, pools: Sequence[Pool]) -> Iterator[tuple[Position, Level | None]]:
    """Positions with the levels at which a stage of the pool can hand over."""
    yield "both", None
    yield "last", None
    here = pools[pool]
    levels: list[Level] = ["island"] if here.island_size > 1 else []
    levels += ["host"] if here.host_islands > 1 else []
    levels += ["pod"] if len(pools) > 1 or len(here.hosts) > 1 else []
    for level in levels:
        yield "first", level
        yield "middle", level


def _layer_counts(position: Position, layers: int) -> range:
    if position == "both":
        return range(layers, layers + 1)
    return range(1, layers if position != "middle" else layers - 1)


def without_dominated(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """Leaves out what a pattern with fewer devices, otherwise alike, does at least as fast.

    The narrower one fits wherever the wider stood, since islands only get emptier; so no optimum is lost.
    """
    alike: dict[tuple[object, ...], list[Pattern]] = {}
    kept: list[Pattern] = []
    for pattern in sorted(patterns, key=lambda p: p.tensor):
        rivals = alike.setdefault((pattern.role, pattern.pool, pattern.layers, pattern.position, pattern.link), [])
        if not any(all(a <= b for a, b in zip(r.times_ns, pattern.times_ns, strict=True)) for r in rivals):
            rivals.append(pattern)
            kept.append(pattern)
    return tuple(sorted(kept, key=_order))


def _order(pattern: Pattern) -> tuple[object, ...]:
    return (pattern.role, pattern.pool, pattern.tensor, pattern.position, pattern.link or "", pattern.layers)
