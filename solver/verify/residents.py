"""How many rows are resident at the start of a decode phase: the exact distribution, cohort by cohort.

A cohort of B_E requests of age a periods has Binomial(B_E, P(D > a N)) left; cohorts are independent, so their
distributions are convolved.
"""

from __future__ import annotations

import math

import numpy as np

from solver.facts.workload import Floats, Workload

_MOST_AGES = 4000


def share_above(
    workload: Workload, hidden: int, encode_batch: int, iterations: int, rows: int, *, late: bool = False
) -> float:
    """P(residents > rows).

    Args:
      hidden: output tokens that the encode phase emits, 1 or 0.
      late: rows are freed a period after their last token (delivery phase+1).
    """
    periods = [-(-(int(s) - hidden) // iterations) for s in workload.output_tokens.tolist()]
    ages = max(periods)
    if ages > _MOST_AGES:
        raise ValueError(
            f"decode_iterations: {iterations} leaves {ages} ages, too many to convolve; at most {_MOST_AGES}"
        )
    left = [0.0] * (ages + 1)
    for period, share in zip(periods, workload.probability.tolist(), strict=True):
        for age in range(period):
            left[age] += share
    if late and ages:
        left = [left[0], *left[:-1]]
    total = np.ones(1)
    for share in left:
        if share > 0:
            total = np.convolve(total, _binomial(encode_batch, min(share, 1.0)))
    return float(total[rows + 1 :].sum())


def _binomial(trials: int, share: float) -> Floats:
    """Probabilities of 0 .. trials."""
    if share >= 1.0 - 1e-15:
        certain = np.zeros(trials + 1)
        certain[-1] = 1.0
        return certain
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(trials + 1)
    ]  # fmt: skip
    return np.exp(np.array(logs))
