"""How many rows are resident at the start of a decode phase: the exact distribution, cohort by cohort.

A cohort of B_E requests of age a periods has Binomial(B_E, P(D > a N)) left; cohorts are independent, so their
distributions are convolved.
"""

from __future__ import annotations

import math

import numpy as np

from solver.facts.workload import Floats
from solver.verify.rra import Answers

_NOTHING = 1e-15


def rows_pmf(answers: Answers, encode_batch: int, iterations: int, *, late: bool = False) -> Floats:
    """float64 [rows + 1]: probability of exactly so many rows.

    Args:
      late: rows are freed a period after their last token (delivery phase+1).
    """
    left = answers.alive[1 : answers.most + 1 : iterations]
    if late and left:
        left = [left[0], *left]
    total = np.ones(1)
    for share in left:
        if share > 0:
            total = np.convolve(total, _binomial(encode_batch, min(share, 1.0)))
            kept = np.flatnonzero(total > _NOTHING**2)
            total = total[: kept[-1] + 1]
    return total


def share_above(answers: Answers, encode_batch: int, iterations: int, rows: int, *, late: bool = False) -> float:
    """P(residents > rows)."""
    return float(rows_pmf(answers, encode_batch, iterations, late=late)[rows + 1 :].sum())


def rows_needed(answers: Answers, encode_batch: int, iterations: int, overflow: float, *, late: bool = False) -> int:
    """The fewest rows that are exceeded in at most `overflow` of periods."""
    above = 1 - np.cumsum(rows_pmf(answers, encode_batch, iterations, late=late))
    return int(np.argmax(above <= overflow))


def _binomial(trials: int, share: float) -> Floats:
    """Probabilities of 0 .. trials."""
    if share >= 1.0 - _NOTHING:
        certain = np.zeros(trials + 1)
        certain[-1] = 1.0
        return certain
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(trials + 1)
    ]  # fmt: skip
    return np.exp(np.array(logs))
