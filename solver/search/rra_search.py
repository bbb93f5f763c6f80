"""RRA over placements and (B_E, N_D) together: incumbents of one mould, better ones from CP-SAT, and a proof.

    uniform placements, each searched to its optimum -> the placement solver at the best point, searched again
        -> families of placements (copies, micro-batches) bounded by what no placement undercuts

The certificate's bound is the largest of the incumbent and of the families that the relaxation could not rule out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from solver.facts.workload import Ints
from solver.search.joint_proof import bound_placements
from solver.search.outcome import Best, Outcome, Report, Tally
from solver.search.placement_search import better_placement
from solver.search.proof.bounds import RraBounds
from solver.search.proof.branch_and_bound import Found, search
from solver.search.proof.floors import Floors, floors_of, memory_floor
from solver.search.proof.infeasible import Relaxed, why_infeasible
from solver.search.proof.limits import Limits
from solver.search.proof.padded_floors import padded
from solver.search.setting import Setting
from solver.search.uniform import Placed, uniform_placements
from solver.simulate.points import Points
from solver.simulate.rra import evaluate_rra

# Values of B_E, and of N_D, of the coarse look at a pipeline.
_COARSE = 8
# Share of the time left that these looks may take.
_LOOKS = 0.25


def search_rra(setting: Setting, tally: Tally, report: Report) -> Outcome:
    """The best RRA schedule, and a bound on all of them."""
    best, bound_rps = search_placements(setting, list(uniform_placements(setting)), tally, None, report)
    if sum(pool.devices for pool in setting.pools) > 1:
        best = _improve(setting, tally, best, report)
        some = best.placed if best else next(uniform_placements(setting))
        evaluate = rra_evaluator(setting, some, 1, 1, with_tpot=False, counted=False)
        bound_rps = max(bound_rps, bound_placements(setting, tally, best, evaluate, report))
    return Outcome(best, max(bound_rps, best.rps if best else 0.0), "all placements, B_E, N_D")


def search_placements(
    setting: Setting, placements: Sequence[Placed], tally: Tally, best: Best | None, report: Report
) -> tuple[Best | None, float]:
    """The best of `best` and the placements' own optima; and the bound of what a limit on time left open.

    A coarse look at every pipeline orders them, since most are ruled out at once by a good incumbent.
    """
    pipelines = [(placed, m_e, m_d) for placed in placements for m_e, m_d in _pairs(placed)]
    promise = [0.0] * len(pipelines)
    looks_end_s = tally.left_s * (1 - _LOOKS)
    # Short pipelines first, since a look at them costs least; what was not looked at comes last.
    for index in sorted(range(len(pipelines)), key=lambda i: len(pipelines[i][0].stages)):
        if tally.left_s < looks_end_s:
            break
        promise[index] = _coarse_rps(setting, *pipelines[index])
        tally.evaluated += _COARSE**2
    open_rps = 0.0
    for index in sorted(range(len(pipelines)), key=lambda i: -promise[i]):
        placed, m_e, m_d = pipelines[index]
        if tally.left_s <= 0:
            tally.complete = False
            return best, math.inf
        found = search_pipeline(setting, placed, m_e, m_d, tally.left_s, best.rps if best else None)
        tally.add(found)
        if found.best is not None and found.points is not None:
            best = Best("rra", placed, found.points, m_e, m_d, found.objective * placed.copies)
            tally.note(best.rps, None)
        if not found.complete or found.gap > 0:
            open_rps = max(open_rps, found.bound * placed.copies)
        report(tally.nodes, best.rps if best else None, None)
    return best, open_rps


def _pairs(placed: Placed) -> list[tuple[int, int]]:
    return [(m_e, m_d) for m_e in placed.micro_batches() for m_d in placed.micro_batches()]


def _coarse_rps(setting: Setting, placed: Placed, m_e: int, m_d: int) -> float:
    """The best of a few candidates that keep the limits, bytes counted plainly; 0 where none does."""
    batches, iterations = (
        np.unique(np.round(np.geomspace(1, most, _COARSE)).astype(np.int64))
        for most in (setting.most_rows, setting.most_iterations)
    )
    grid = np.meshgrid(batches, iterations, indexing="ij")
    points = rra_evaluator(setting, placed, m_e, m_d, counted=False)(grid[0].ravel(), grid[1].ravel())
    kept = limits_of(setting, placed).kept(points)
    return float(points.throughput_rps[kept].max(initial=0.0)) * placed.copies


def search_pipeline(
    setting: Setting,
    placed: Placed,
    m_e: int,
    m_d: int,
    time_limit_s: float,
    beat_rps: float | None,
    node_limit: int | None = None,
) -> Found:
    """Proof search over (B_E, N_D) on one pipeline."""
    most = setting.most_rows
    return search(
        rra_bounds(setting, placed, m_e, m_d),
        rra_evaluator(setting, placed, m_e, m_d),
        limits_of(setting, placed),
        ((1, most), (1, setting.most_iterations)),
        gap=setting.request.gap,
        node_limit=node_limit or setting.request.node_limit,
        time_limit_s=time_limit_s,
        incumbent=None if beat_rps is None else beat_rps / placed.copies,
    )


def limits_of(setting: Setting, placed: Placed) -> Limits:
    return dataclasses.replace(setting.limits, memory_bytes=placed.usable_bytes(setting))


def rra_bounds(setting: Setting, placed: Placed, m_e: int, m_d: int) -> RraBounds:
    memory = memory_floor(placed.pipeline, setting.lengths, setting.conditions, placed.usable_bytes(setting))
    floors: Floors = floors_of(placed.pipeline, m_e, m_d, memory, setting.most_rows)
    if setting.padding is not None:
        floors = padded(floors)
    return RraBounds(floors, setting.lengths, setting.conditions, setting.most_iterations)


def rra_evaluator(
    setting: Setting, placed: Placed, m_e: int, m_d: int, with_tpot: bool | None = None, counted: bool = True
) -> Callable[[Ints, Ints], Points]:
    """Exact predictions of candidates; `with_tpot`: None where a bound asks for it; `counted`: every byte."""
    if with_tpot is None:
        with_tpot = math.isfinite(setting.limits.tpot_s)

    def evaluate(batch: Ints, iterations: Ints) -> Points:
        return evaluate_rra(
            placed.pipeline, setting.lengths, setting.conditions, batch, iterations, m_e, m_d,
            memory=setting.memory if counted else None, padding=setting.padding, rate_rps=_rate(setting, placed),
            with_tpot=with_tpot,
        )  # fmt: skip

    return evaluate


def why_not_rra(setting: Setting) -> tuple[Placed, tuple[Relaxed, ...]]:
    """Of the placements, the one that comes nearest to the latency bound, and what each limit would have to be."""
    nearest: tuple[float, Placed, tuple[Relaxed, ...]] | None = None
    for placed in uniform_placements(setting):
        most = ((1, setting.most_rows), (1, setting.most_iterations))
        found = why_infeasible(
            rra_bounds(setting, placed, 1, 1), rra_evaluator(setting, placed, 1, 1), limits_of(setting, placed), most,
            node_limit=5_000,
        )  # fmt: skip
        times = [r.nearest / r.limit for r in found if r.name != "memory" and r.nearest is not None]
        memory = next((r.alone for r in found if r.name == "memory" and r.alone is not None), 1.0)
        distance = max(times, default=1.0) if memory <= 1 else 1e3 * memory
        if nearest is None or distance < nearest[0]:
            nearest = distance, placed, found
    assert nearest is not None, "a cluster has at least one placement"
    return nearest[1], nearest[2]


def _rate(setting: Setting, placed: Placed) -> float | None:
    """Arrivals that one copy gets."""
    return None if setting.rate_rps is None else setting.rate_rps / placed.copies


def _improve(setting: Setting, tally: Tally, best: Best | None, report: Report) -> Best | None:
    """Placements of mixed degrees and uneven layers, while they help."""
    while best is not None and setting.padding is None and tally.left_s > 0:
        placed = better_placement(setting, best.placed, best.points, best.encode_micro_batches,
                                  best.decode_micro_batches, tally.left_s)  # fmt: skip
        tally.nodes += 1
        if placed is None:
            return best
        found, _ = search_placements(setting, [placed], tally, best, report)
        if found is best:
            return best
        best = found
    return best
