"""How far the traffic may drift before the plan in force breaks a bound, and what to change to when it does.

Output lengths are stretched by a share, the workload's shape kept, and the plan's own controls evaluated on them, B_E
corrected as the runner corrects it. The profile's margin is for errors of the profile, so it stays off the bounds here.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Workload, merge
from solver.plan.certificate import Margins, Neighbour
from solver.search.outcome import Best
from solver.search.rra_search import limits_of, rra_evaluator, search_pipeline
from solver.search.setting import Setting, make_setting
from solver.search.uniform import Placed, again

_DRIFTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_NEIGHBOURS = (-0.3, -0.15, 0.15, 0.3)
_NEIGHBOUR_S = 5.0


def margins_of(setting: Setting, best: Best) -> Margins:
    """Drift that the plan stands, and neighbours beyond it; policies other than rra promise none."""
    low, high = 0.0, 0.0
    neighbours: tuple[Neighbour, ...] = ()
    if best.policy == "rra":
        low, high = -_reach(setting, best, -1), _reach(setting, best, 1)
        beyond = [drift for drift in _NEIGHBOURS if not low <= drift <= high]
        neighbours = tuple(_neighbour(setting, best, drift) for drift in beyond)
    mean = setting.workload.mean_output
    return Margins(
        profile_delta=setting.margin,
        output_drift_low=low,
        output_drift_high=high,
        replan_below_tokens=mean * (1 + low),
        replan_above_tokens=mean * (1 + high),
        overflow=setting.request.overflow,
        neighbours=neighbours,
    )


def drifted(workload: Workload, drift: float, most_tokens: int) -> Workload:
    """Every output stretched by 1 + drift, split between the two whole lengths around it; rows stay within theirs."""
    stretched = np.maximum(1.0, workload.output_tokens * (1 + drift))
    below = np.floor(stretched).astype(np.int64)
    above = stretched - below
    inputs = np.concatenate([workload.input_tokens, workload.input_tokens])
    room = np.maximum(1, most_tokens - inputs)
    outputs = np.minimum(np.concatenate([below, below + 1]), room)
    weight = np.concatenate([workload.probability * (1 - above), workload.probability * above])
    return merge(f"{workload.name} {drift:+.0%}", workload.source, inputs, outputs, weight)


def _reach(setting: Setting, best: Best, sign: int) -> float:
    """The largest drift tried in that direction up to which the runner, which corrects B_E, keeps every bound.

    It admits from half to twice the planned batch, so that residents stay within the rows that are allocated.
    """
    batch = int(best.points.encode_batch[0])
    batches = np.arange(-(-batch // 2), 2 * batch + 1)
    kept = 0.0
    for drift in _DRIFTS:
        other, placed = _under(setting, best, sign * drift)
        evaluate = rra_evaluator(other, placed, best.encode_micro_batches, best.decode_micro_batches)
        points = evaluate(batches, np.full_like(batches, best.points.decode_iterations[0]))
        held = limits_of(other, placed).kept(points) & (points.max_rows <= best.points.max_rows[0])
        if not held.any():
            return kept
        kept = drift
    return kept


def _neighbour(setting: Setting, best: Best, drift: float) -> Neighbour:
    """The best controls on the same stages."""
    other, placed = _under(setting, best, drift)
    found = search_pipeline(
        other, placed, best.encode_micro_batches, best.decode_micro_batches, _NEIGHBOUR_S, None, node_limit=20_000
    )
    if found.best is None:
        return Neighbour(drift, None, None, None)
    return Neighbour(drift, found.best[0], found.best[1], found.objective * placed.copies)


def _under(setting: Setting, best: Best, drift: float) -> tuple[Setting, Placed]:
    workload = drifted(setting.workload, drift, setting.conditions.cache_tokens)
    other = make_setting(setting.request, workload)
    return other, again(other, best.placed)
