"""The placement solver at one point of (B_E, N_D): mixed degrees and uneven layers for the best copy so far.

The decode phase is sampled at a few iterations, whose contexts stand for those around them; what comes back is laid out
on devices and then searched again over (B_E, N_D) exactly, so sampling never touches the answer, only the way to it.
"""

from __future__ import annotations

import numpy as np

from solver.search.placement.cp_placement import best_placement
from solver.search.placement.layout import lay_out, pipeline_of
from solver.search.placement.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement.placement_forms import rra_period
from solver.search.placement.placement_problem import Limit, PlacementProblem
from solver.search.placement.pools import replica_counts, share_pools
from solver.search.placement.start_placement import start_placement
from solver.search.setting import Setting
from solver.search.uniform import Placed, return_s
from solver.simulate.lengths import residents
from solver.simulate.points import Points

_SAMPLES = 4
_MOST_S = 10.0
# Temporaries and payloads that patterns do not know are kept room for; the exact search counts them.
_ROOM = 0.97


def better_placement(
    setting: Setting, placed: Placed, points: Points, m_e: int, m_d: int, time_limit_s: float
) -> Placed | None:
    """The solver's placement at this candidate; None where it is the one at hand or none is found."""
    problem = _problem(setting, placed, points, m_e, m_d)
    if problem is None:
        return None
    found = best_placement(problem, min(_MOST_S, time_limit_s), start_placement(problem))
    if not found.counts:
        return None
    laid_out = lay_out(problem, found.counts)[0]
    stages = laid_out.stages
    if [(s.layers, s.tensor) for s in stages] == [(s.layers, s.tensor) for s in placed.stages]:
        return None
    back = return_s(setting, [stage.devices for stage in stages])
    kinds = tuple(problem.pools[pattern.pool].kind for pattern in laid_out.patterns)
    return Placed(placed.copies, stages, pipeline_of(laid_out, problem.pools, setting.units, back), kinds)


def _problem(setting: Setting, placed: Placed, points: Points, m_e: int, m_d: int) -> PlacementProblem | None:
    batch, iterations = float(points.encode_batch[0]), int(points.decode_iterations[0])
    steady = residents(setting.lengths, iterations)
    spans = np.array_split(np.arange(iterations), min(_SAMPLES, iterations))
    if setting.conditions.compaction == "phase":
        rows, context = np.full(iterations, steady.rows[0]), steady.context[0] + np.arange(iterations)
    else:
        rows, context = steady.rows, steady.context
    loads = [Load("encode", batch / m_e)]
    loads += [Load("decode", batch * float(rows[s].mean()) / m_d, float(context[s].mean())) for s in spans]
    loads.append(Load("call"))
    # What does not divide among the copies stays idle, as it does under the placement at hand.
    alike = [pool for pool in setting.pools if placed.copies in replica_counts([pool])]
    pools = share_pools(alike, placed.copies)[0]
    capacity = {kind.name: _ROOM * setting.usable_bytes(kind.name) for kind in setting.cluster.kinds}
    cached = _cached_tokens(setting, placed, points)
    patterns = make_patterns(setting.units, pools, setting.layers, loads, {"both": MemoryNeed(cached)}, capacity)
    if not patterns:
        return None
    counts = [len(span) for span in spans]
    limits = []
    if np.isfinite(setting.limits.latency_s):
        longest = setting.lengths.decode_percentile(setting.conditions.latency_percentile)
        periods = max(1, -(-longest // iterations))
        form = rra_period([n * periods for n in counts], encodes=periods, phases=periods, name="latency")
        limits.append(Limit(form, round(setting.limits.latency_s * 1e9)))
    return PlacementProblem(
        pools=pools,
        patterns=patterns,
        roles=("both",),
        layers=setting.layers,
        most_stages=min(setting.most_stages, sum(pool.devices for pool in pools)),
        micro_batches=(m_e, *(m_d for _ in counts), 1),
        path_ns=(0, *(_return_ns(setting) for _ in counts), 0),
        objective=(rra_period(counts),),
        limits=tuple(limits),
    )


def _return_ns(setting: Setting) -> int:
    """The way back of a token over the farthest link that a copy may span; exact once it is laid out."""
    return round(float(setting.cluster.host.transfer_s(4.0)) * 1e9)


def _cached_tokens(setting: Setting, placed: Placed, points: Points) -> float:
    """Positions that the candidate allocates, read back from the bytes that the paged layout counts."""
    if setting.conditions.cache_layout == "slots":
        return float(points.max_rows[0]) * setting.conditions.cache_tokens
    steady = residents(setting.lengths, int(points.decode_iterations[0]))
    return float(points.encode_batch[0] * (steady.tokens + 4 * np.sqrt(steady.tokens_variance)).max())
