"""Times of an encode phase and of a decode phase on a pipeline with a barrier between phases (scheduling.md, 2.2).

With x_j the time of stage j on one of m micro-batches: m micro-batches leave the last stage after
sum x + (m - 1) max x. In decode a token must come back to the first stage before the next iteration, so iterations
start max(m max x, sum x) apart, and the last one takes b = min(sum x - max x, (m - 1) max x) longer to drain.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline


def encode_phase_s(pipeline: Pipeline, batch: Floats, micro_batches: Floats) -> Floats:
    """float64 [P]: T_E of `batch` prompts in `micro_batches` parts; exact, fill and drain contained."""
    total, most = np.zeros(np.shape(batch)), np.zeros(np.shape(batch))
    below, part = _split(batch / micro_batches, pipeline.most_rows)
    for stage, count in _distinct(pipeline):
        table = pipeline.encode_rows_s[stage]
        seconds = table[below] * (1 - part) + table[below + 1] * part
        total += count * seconds
        np.maximum(most, seconds, out=most)
    return total + (micro_batches - 1) * most


@dataclasses.dataclass(frozen=True, eq=False)
class Iterations:
    """Decode iterations of many candidates.

    Attributes:
      apart_s: float64 [U, P]: T_D: from one iteration's start to the next one's.
      drain_s: float64 [U, P]: b: what an iteration takes longer if it is the last.
    """

    apart_s: Floats
    drain_s: Floats


def iterations_s(pipeline: Pipeline, rows: Floats, context: Floats, micro_batches: Floats) -> Iterations:
    """T_D and b.

    Args:
      rows: float64 [U, P], or [1, P] where every iteration has the same rows.
      context: float64 [U]: of every candidate.
      micro_batches: float64 [P].
    """
    below, part = _split(rows / micro_batches, pipeline.most_rows)
    knots = pipeline.contexts
    low = np.clip(np.searchsorted(knots, context, side="right") - 1, 0, max(0, len(knots) - 2))
    high = np.minimum(low + 1, len(knots) - 1)
    share = np.clip((context - knots[low]) / np.where(high > low, knots[high] - knots[low], 1.0), 0.0, 1.0)[:, None]
    path: Floats | None = None
    most: Floats | None = None
    for stage, count in _distinct(pipeline):
        seconds = _stage_s(pipeline.decode_pairs_s[stage], low, high, share, below, part)
        several = seconds if count == 1 else count * seconds
        path = several if path is None else path + several
        most = seconds if most is None else np.maximum(most, seconds)
    assert path is not None
    assert most is not None
    if len(pipeline.stages) == 1:
        most *= micro_batches
        return Iterations(most, np.broadcast_to(0.0, most.shape))
    path = path + pipeline.return_s
    return Iterations(np.maximum(micro_batches * most, path), np.minimum(path - most, (micro_batches - 1) * most))


def _stage_s(pairs: Floats, low: Ints, high: Ints, share: Floats, below: Ints, part: Floats) -> Floats:
    """float64 [U, P] of one stage, from [contexts, r, 2]: seconds at r and r + 1 rows, fetched together."""
    if len(below) == 1:
        curve = pairs[:, below[0], 0] * (1 - part[0]) + pairs[:, below[0], 1] * part[0]
        return curve[low] * (1 - share) + curve[high] * share
    flat, width = pairs.reshape(-1, 2), pairs.shape[1]
    both = flat.take(below + (low * width)[:, None], axis=0)
    both *= 1 - share[:, :, None]
    above = flat.take(below + (high * width)[:, None], axis=0)
    above *= share[:, :, None]
    both += above
    seconds: Floats = both[..., 1] - both[..., 0]
    seconds *= part
    seconds += both[..., 0]
    return seconds


def _split(rows: Floats, most: int) -> tuple[Ints, Floats]:
    below = np.minimum(rows.astype(np.int64), most - 1)
    return below, rows - below


def _distinct(pipeline: Pipeline) -> list[tuple[int, int]]:
    """Stages that differ, by index, and how many cost the same: a pipeline of sixteen has about three kinds."""
    kinds: dict[tuple[object, ...], tuple[int, int]] = {}
    for index, stage in enumerate(pipeline.stages):
        key = (id(stage.unit), stage.layers, stage.first, stage.last, stage.link)
        first, count = kinds.get(key, (index, 0))
        kinds[key] = (first, count + 1)
    return list(kinds.values())
