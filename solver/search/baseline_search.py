"""The baselines, each tuned: static, dsi, iteration and chunked over a sweep of their own settings.

    uniform placements x micro-batch counts -> a coarse grid of settings each -> the best of them refined twice

A sweep proves nothing, and none is claimed: the outcome says how many settings were looked at. Grids are geometric, so
a refinement ends within about 1% of the best setting near the coarse grid's best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from solver.facts.workload import Ints
from solver.plan.schedule import Policy
from solver.search.outcome import Best, Outcome, Report, Tally
from solver.search.proof.limits import Limits
from solver.search.setting import Setting
from solver.search.sweep import excess, pick
from solver.search.uniform import Placed, uniform_placements
from solver.simulate.chunked import evaluate_chunked
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.points import Points
from solver.simulate.static import evaluate_static

# Token budgets of chunked: a chunk of fewer tokens costs its reading of the weights, which formulas that are linear in
# tokens do not show; beyond the most, an iteration takes seconds on any device.
_LEAST_BUDGET, _MOST_BUDGET = 64, 32768
# Values of the first and the second setting on the coarse grid, and on a finer one. Bytes of chunked jump with both.
_COARSE, _COARSE_CHUNKED, _FINE = (20, 12), (30, 16), (16, 12)
# Pipelines that are refined: within this share of the best, so many at most; around so many of their best settings.
_PROMISING, _REFINED, _AROUND = 0.75, 16, 3
# Settings whose bytes are counted in full at once, in falling order of throughput; and that are evaluated at once.
_COUNTED = 16
_MOST_CELLS = 2_000_000

Grid = tuple[Ints, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Line:
    """One pipeline, and how many micro-batches it is run with."""

    placed: Placed
    encode_micro_batches: int
    decode_micro_batches: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Setting:
    """One setting that was looked at: its values, its predictions, and its excess over the limits."""

    values: tuple[int, ...]
    points: Points
    excess: float

    @property
    def rps(self) -> float:
        return float(self.points.throughput_rps[0])


def search_baseline(setting: Setting, policy: Policy, tally: Tally, report: Report) -> Outcome:
    """The best setting of a baseline that keeps the limits; the bound is its own throughput."""
    sweep = _Sweep(setting, policy, tally)
    lines = list(_lines(setting, policy))
    looked: list[tuple[_Line, Grid, list[_Setting]]] = []
    best: Best | None = None
    nearest: tuple[float, Best] | None = None
    for line in lines:
        if tally.left_s <= 0:
            tally.complete = False
            break
        grid = sweep.coarse()
        kept, near = sweep.look(line, grid)
        looked.append((line, grid, kept))
        best = _better(best, policy, line, kept)
        if near is not None and (nearest is None or near.excess < nearest[0]):
            nearest = near.excess, _best(policy, line, near)
        report(tally.nodes, best.rps if best else None, None)
    if best is not None:
        promising = [each for each in looked if _rps(each[0], each[2]) >= _PROMISING * best.rps]
        for line, grid, kept in sorted(promising, key=lambda each: -_rps(each[0], each[2]))[:_REFINED]:
            best = _better(best, policy, line, sweep.refine(line, grid, kept))
            report(tally.nodes, best.rps if best else None, None)
    tally.note(best.rps if best else None, None)
    covers = f"a tuned sweep of {sweep.looked} settings"
    return Outcome(best, best.rps if best else 0.0, covers, nearest[1] if nearest and best is None else None)


def _lines(setting: Setting, policy: str) -> Iterator[_Line]:
    """Every uniform placement with the micro-batch counts that the policy knows: equal ones, or any two."""
    for placed in uniform_placements(setting):
        for m_e in placed.micro_batches():
            for m_d in placed.micro_batches():
                if m_e == m_d or policy in ("dsi", "iteration"):
                    yield _Line(placed, m_e, m_d)


class _Sweep:
    """Looks at grids of one policy's settings, and counts them."""

    def __init__(self, setting: Setting, policy: str, tally: Tally) -> None:
        self._setting, self._policy, self._tally = setting, policy, tally
        rows = setting.most_rows
        self._ranges = {
            "static": ((1, rows), (1, setting.most_iterations)),
            "dsi": ((1, rows), (1, setting.most_iterations)),
            "iteration": ((1, rows),),
            "chunked": ((_LEAST_BUDGET, _MOST_BUDGET), (1, rows)),
        }[policy]
        self.looked = 0

    def coarse(self) -> Grid:
        counts = _COARSE_CHUNKED if self._policy == "chunked" else _COARSE
        return tuple(_geometric(*ends, count) for ends, count in zip(self._ranges, counts, strict=False))

    def look(self, line: _Line, grid: Grid) -> tuple[list[_Setting], _Setting | None]:
        """The few best settings of a grid that keep the limits; without any, the nearest one.

        Bytes are counted plainly at first, which undercuts any way of counting them; in full only for those that may
        be among the best.
        """
        columns = tuple(axis.ravel() for axis in np.meshgrid(*grid, indexing="ij"))
        self.looked += len(columns[0])
        self._tally.evaluated += len(columns[0])
        limits = dataclasses.replace(self._setting.limits, memory_bytes=line.placed.usable_bytes(self._setting))
        plain = self._evaluate(line, columns, counted=False)
        hopeful = np.flatnonzero(limits.kept(plain))
        hopeful = hopeful[np.argsort(-plain.throughput_rps[hopeful], kind="stable")]
        found: list[_Setting] = []
        for first in range(0, len(hopeful), _COUNTED):
            found += self._counted(line, columns, hopeful[first : first + _COUNTED], limits)
            kept = [each for each in found if each.excess <= 1]
            if len(kept) >= _AROUND:
                return kept[:_AROUND], None
        if any(each.excess <= 1 for each in found):
            return [each for each in found if each.excess <= 1], None
        order = np.argsort(excess(plain, limits), kind="stable")[:_COUNTED]
        found += self._counted(line, columns, order, limits)
        near = min(found, key=lambda each: each.excess)
        return [], near if math.isfinite(near.excess) else None

    def refine(self, line: _Line, grid: Grid, kept: list[_Setting]) -> list[_Setting]:
        """Twice around the best settings: between the neighbours of each, and once more around the best of those."""
        found: list[_Setting] = []
        for around in kept:
            finer = _between(grid, around.values)
            inner, _ = self.look(line, finer)
            if inner:
                last, _ = self.look(line, _between(finer, inner[0].values))
                found += [*inner[:1], *last[:1]]
        return found

    def _counted(self, line: _Line, columns: Grid, at: Ints, limits: Limits) -> list[_Setting]:
        chosen = tuple(column[at] for column in columns)
        points = self._evaluate(line, chosen, counted=True)
        over = excess(points, limits)
        return [
            _Setting(tuple(int(column[i]) for column in chosen), pick(points, i), float(over[i]))
            for i in range(len(at))
        ]

    def _evaluate(self, line: _Line, columns: Grid, counted: bool) -> Points:
        """In parts, since static batching looks at every iteration of the longest answer."""
        longest = self._setting.lengths.most_decode + 2 * self._setting.most_iterations
        size = max(1, _MOST_CELLS // longest) if self._policy in ("static", "dsi") else len(columns[0])
        parts = [
            self._evaluate_part(line, tuple(column[first : first + size] for column in columns), counted)
            for first in range(0, len(columns[0]), size)
        ]
        return Points(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=-1)
                for field in dataclasses.fields(Points)
            }
        )

    def _evaluate_part(self, line: _Line, columns: Grid, counted: bool) -> Points:
        setting, placed = self._setting, line.placed
        shared = {
            "memory": setting.memory if counted else None,
            "padding": setting.padding,
            "rate_rps": None if setting.rate_rps is None else setting.rate_rps / placed.copies,
            "with_tpot": math.isfinite(setting.limits.tpot_s) or counted,
        }
        fixed = placed.pipeline, setting.lengths, setting.conditions
        m_e, m_d = line.encode_micro_batches, line.decode_micro_batches
        known: dict[str, tuple[Callable[..., Points], tuple[int, ...]]] = {
            "static": (evaluate_static, (m_e, m_d)),
            "dsi": (evaluate_static, (m_e, m_d)),
            "iteration": (evaluate_iteration, (m_e, m_d)),
            "chunked": (evaluate_chunked, (m_d,)),
        }
        evaluate, parts = known[self._policy]
        return evaluate(*fixed, *columns, *parts, **shared)


def _geometric(low: int, high: int, count: int) -> Ints:
    """About `count` whole numbers from low to high in equal ratios, both ends included."""
    return np.unique(np.round(np.geomspace(low, high, count)).astype(np.int64))


def _between(grid: Grid, values: Sequence[int]) -> Grid:
    """A finer grid between the neighbours of a setting."""
    finer = []
    for axis, value, count in zip(grid, values, _FINE, strict=False):
        at = int(np.searchsorted(axis, value))
        finer.append(_geometric(int(axis[max(0, at - 1)]), int(axis[min(len(axis) - 1, at + 1)]), count))
    return tuple(finer)


def _rps(line: _Line, kept: list[_Setting]) -> float:
    return kept[0].rps * line.placed.copies if kept else -math.inf


def _better(best: Best | None, policy: Policy, line: _Line, kept: list[_Setting]) -> Best | None:
    for each in kept:
        if best is None or each.rps * line.placed.copies > best.rps:
            best = _best(policy, line, each)
    return best


def _best(policy: Policy, line: _Line, found: _Setting) -> Best:
    budget = found.values[0] if policy == "chunked" else 0
    rps = found.rps * line.placed.copies
    return Best(policy, line.placed, found.points, line.encode_micro_batches, line.decode_micro_batches, rps, budget)
