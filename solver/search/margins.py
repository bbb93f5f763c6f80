"""How far the traffic may drift before the plan in force breaks a bound, and what to change to when it does.

Lengths are stretched by a share, the workload's shape kept, and the plan's own controls evaluated on them, B_E
corrected as the runner corrects it. The profile's margin is for errors of the profile, so it stays off the bounds here.
Within the margins the best controls that need no new program are worked out for every drift tried; a runner that
follows the traffic changes to them at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from solver.facts.workload import Floats, Workload, merge
from solver.plan.certificate import Margins, Neighbour
from solver.search.outcome import Best
from solver.search.rra_search import limits_of, rra_evaluator, search_pipeline
from solver.search.setting import Setting, make_setting
from solver.search.uniform import Placed, again
from solver.simulate.lengths import residents

_DRIFTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_NEIGHBOURS = (-0.3, -0.15, 0.15, 0.3)
_NEIGHBOUR_S = 5.0
# Values of N_D that are tried within the margins.
_ITERATIONS = 8

_Side = Literal["input", "output"]


def margins_of(setting: Setting, best: Best) -> Margins:
    """Drift that the plan stands, and controls for it; policies other than rra promise none."""
    low, high, input_low, input_high = 0.0, 0.0, 0.0, 0.0
    neighbours: list[Neighbour] = []
    if best.policy == "rra":
        shorter, longer = _within(setting, best, -1), _within(setting, best, 1)
        low, high = (side[-1].output_drift if side else 0.0 for side in (shorter, longer))
        beyond = [_neighbour(setting, best, drift) for drift in _NEIGHBOURS if not low <= drift <= high]
        neighbours = sorted((*shorter, *longer, *beyond), key=lambda each: each.output_drift)
        input_low, input_high = -_input_reach(setting, best, -1), _input_reach(setting, best, 1)
    mean = setting.workload.mean_output
    return Margins(
        profile_delta=setting.margin,
        output_drift_low=low,
        output_drift_high=high,
        replan_below_tokens=mean * (1 + low),
        replan_above_tokens=mean * (1 + high),
        overflow=setting.request.overflow,
        neighbours=tuple(neighbours),
        mean_input_tokens=setting.workload.mean_input,
        input_drift_low=input_low,
        input_drift_high=input_high,
        fluctuation=setting.request.fluctuation,
    )


def drifted(
    workload: Workload, drift: float, most_tokens: int, side: _Side = "output", most_input: int | None = None
) -> Workload:
    """Every output (or input) stretched by 1 + drift, split between the two whole lengths around it.

    Rows stay within `most_tokens`, inputs within `most_input`.
    """
    inputs, outputs = workload.input_tokens, workload.output_tokens
    stretched = np.maximum(1.0, (inputs if side == "input" else outputs) * (1 + drift))
    below = np.floor(stretched).astype(np.int64)
    above = stretched - below
    split = np.concatenate([below, below + 1])
    if side == "input":
        inputs = np.minimum(split, most_input or most_tokens - 1)
        outputs = np.concatenate([outputs, outputs])
    else:
        inputs, outputs = np.concatenate([inputs, inputs]), split
    outputs = np.minimum(outputs, np.maximum(1, most_tokens - inputs))
    weight = np.concatenate([workload.probability * (1 - above), workload.probability * above])
    return merge(f"{workload.name} {drift:+.0%}", workload.source, inputs, outputs, weight)


def _within(setting: Setting, best: Best, sign: int) -> list[Neighbour]:
    """Controls for rising drift in that direction, as far as some that keep N_D keep every bound.

    The runner holds a decode batch by correcting B_E, so these are looked at by the batch that they hold, up to the
    planned one, whose rows are allocated; at N_D it corrects from half to twice the planned B_E. Fewer iterations than
    planned need no other programs.
    """
    planned = int(best.points.decode_iterations[0])
    lengths = np.unique(np.round(np.linspace(1, planned, _ITERATIONS)).astype(np.int64))
    found: list[Neighbour] = []
    for drift in _DRIFTS:
        other, placed = _under(setting, best, sign * drift)
        tried = [_best_held(other, placed, best, int(n)) for n in lengths]
        if tried[-1] is None:
            break
        rps, iterations, rows, batch = max(each for each in tried if each is not None)
        found.append(Neighbour(sign * drift, max(1, round(batch)), iterations, rps * placed.copies, rows))
    return found


def _best_held(setting: Setting, placed: Placed, best: Best, iterations: int) -> tuple[float, int, int, float] | None:
    """(throughput of a copy, N_D, B_D, mean B_E) of the decode batch that answers most within the bounds; or None.

    B_E is then no whole number; between two, times and throughput are taken from the line between theirs.
    """
    planned, most = int(best.points.encode_batch[0]), max(1, round(float(best.points.decode_batch[0])))
    rows = np.arange(1, most + 1)
    batch = rows / residents(setting.lengths, iterations).rows[0]
    if iterations == best.points.decode_iterations[0]:
        rows, batch = (column[(batch >= planned / 2) & (batch <= 2 * planned)] for column in (rows, batch))
    else:
        rows, batch = rows[batch <= 2 * planned], batch[batch <= 2 * planned]
    evaluate = rra_evaluator(setting, placed, best.encode_micro_batches, best.decode_micro_batches)
    whole = np.arange(1, int(np.ceil(batch.max(initial=1.0))) + 1)
    points = evaluate(whole, np.full_like(whole, iterations))

    def between(column: Floats) -> Floats:
        # Below one request a phase, the phases with one are no shorter.
        return np.asarray(np.interp(batch, whole, column), np.float64)

    limits, held = setting.limits, np.ones(len(rows), bool)
    for limit, column in (
        (limits.latency_s, points.latency_s),
        (limits.ttft_s, points.ttft_s),
        (limits.tpot_s, points.tpot_s),
    ):
        if np.isfinite(limit):
            held &= between(column) <= limit
    if not held.any():
        return None
    rps = between(points.throughput_rps) * np.minimum(1.0, batch)
    at = int(np.argmax(np.where(held, rps, -1.0)))
    return float(rps[at]), iterations, int(rows[at]), float(batch[at])


def _input_reach(setting: Setting, best: Best, sign: int) -> float:
    """The largest drift of inputs in that direction up to which the plan's own controls keep every bound."""
    kept = 0.0
    for drift in _DRIFTS:
        other, placed = _under(setting, best, sign * drift, "input")
        evaluate = rra_evaluator(other, placed, best.encode_micro_batches, best.decode_micro_batches)
        if not limits_of(other, placed).kept(evaluate(best.points.encode_batch, best.points.decode_iterations)).all():
            break
        kept = drift
    return kept


def _neighbour(setting: Setting, best: Best, drift: float) -> Neighbour:
    """The best controls on the same stages."""
    other, placed = _under(setting, best, drift)
    found = search_pipeline(
        other, placed, best.encode_micro_batches, best.decode_micro_batches, _NEIGHBOUR_S, None, node_limit=20_000
    )
    if found.best is None or found.points is None:
        return Neighbour(drift, None, None, None)
    rows = max(1, round(float(found.points.decode_batch[0])))
    return Neighbour(drift, found.best[0], found.best[1], found.objective * placed.copies, rows)


def _under(setting: Setting, best: Best, drift: float, side: _Side = "output") -> tuple[Setting, Placed]:
    most_input = setting.memory.max_prompt_tokens
    workload = drifted(setting.workload, drift, setting.conditions.cache_tokens, side, most_input)
    other = make_setting(setting.request, workload)
    return other, again(other, best.placed)
