"""The traffic as the planner wants it: an estimate of lengths, and recent arrivals where bounds count from them.

Inputs and outputs are taken as independent, since they are estimated apart; what together exceeds a row is cut to it,
as the rows were.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from exegpt_jax.runner.estimate import Estimate
from solver.facts.histogram import Histogram, within
from solver.facts.workload import Ints, Trace, Workload, merge

# Arrivals that are kept.
MOST_ARRIVALS = 2048
_SEED = 0

Arrivals = collections.deque[tuple[float, int]]
"""(moment, prompt tokens) of the last requests, in order of encoding."""


def lengths_now(estimate: Estimate, cache_tokens: int) -> Workload:
    """The joint distribution that the estimate tells, rows within `cache_tokens`."""
    inputs, outputs, said = within(estimate.inputs, estimate.outputs)
    first, second = np.meshgrid(inputs.lengths, outputs.lengths, indexing="ij")
    prompts, answers = first.ravel(), second.ravel()
    answers = np.minimum(answers, np.maximum(1, cache_tokens - prompts))
    weight = np.outer(inputs.share, outputs.share).ravel()
    return merge("traffic", f"estimated from {estimate.requests:.0f} requests{said}", prompts, answers, weight)


def requests_now(
    estimate: Estimate, arrivals: Sequence[tuple[float, int]], cache_tokens: int, pace: float = 1.0
) -> Workload:
    """The last requests as they arrived, each with an output length of the estimate: together its quantiles.

    Moments are divided by the pace (`solver.plan.at_pace`).
    """
    moments, prompts = (np.array(column) for column in zip(*sorted(arrivals), strict=True))
    answers = np.random.default_rng(_SEED).permutation(_quantiles(estimate.outputs, len(prompts)))
    answers = np.minimum(answers, np.maximum(1, cache_tokens - prompts))
    trace = Trace((moments - moments[0]) / pace, prompts, answers)
    return merge(
        "traffic", f"the last {len(prompts)} requests, output lengths estimated from {estimate.requests:.0f}",
        prompts, answers, np.ones(len(prompts)), trace,
    )  # fmt: skip


def _quantiles(lengths: Histogram, count: int) -> Ints:
    """int64 [count]: evenly over the distribution, rising."""
    index = np.searchsorted(np.cumsum(lengths.share), (np.arange(count) + 0.5) / count)
    return lengths.lengths[np.minimum(index, len(lengths.lengths) - 1)]
