"""Quantiles that capacity is sized by: of resident rows, of their tokens, and of latencies weighted by length."""

from __future__ import annotations

import functools
import statistics

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.lengths import Lengths

_HALVINGS = 50


@functools.lru_cache(maxsize=64)
def normal_quantile(share: float) -> float:
    """z with P(Z <= z) = share."""
    return statistics.NormalDist().inv_cdf(share)


@functools.lru_cache(maxsize=4096)
def occupancy(lengths: Lengths, iterations: int, late: bool) -> Floats:
    """float64 [ages]: P(a request of age a periods holds a row); `late`: rows are freed a period after the last."""
    born = lengths.alive[1::iterations]
    if not born.size:
        return np.zeros(1)
    return np.concatenate([born[:1], born]) if late else born


def resident_quantile(encode_batch: Ints | Floats, held: Floats, overflow: float) -> Ints:
    """int64 [P]: the fewest rows that residents exceed in at most `overflow` of periods.

    Residents are a sum of binomials, B_E trials for each age. Their quantile is taken from the normal distribution
    with a correction for skewness (Cornish-Fisher); tests hold it against the exact convolution.
    """
    batch = encode_batch.astype(np.float64)
    spread = held * (1 - held)
    mean, variance, third = held.sum(), spread.sum(), (spread * (1 - 2 * held)).sum()
    z = normal_quantile(1 - overflow)
    deviation = np.sqrt(batch * variance)
    skewness = third / np.sqrt(batch) / variance**1.5 if variance > 0 else np.zeros_like(batch)
    quantile = np.ceil(batch * mean + deviation * (z + (z * z - 1) * skewness / 6) - 0.5 - 1e-9)
    fewest = np.maximum(np.ceil(batch * mean - 1e-9), np.ceil(batch))
    most = np.maximum(np.ceil(batch) * (held > 0).sum(), fewest)
    return np.clip(quantile, fewest, most).astype(np.int64)


def weighted_quantile(values: Floats, weight: Floats, share: float) -> Floats:
    """float64 [P]: of values [n, P], the smallest that `share` of the weight does not exceed."""
    order = np.argsort(values, axis=0)
    below = np.cumsum(weight[order], axis=0)
    index = (below < (share - 1e-9) * below[-1]).sum(axis=0)
    ranked = np.minimum(index, len(values) - 1)
    return np.take_along_axis(values, np.take_along_axis(order, ranked[None, :], axis=0), axis=0)[0]


def quantile_with_wait(values: Floats, weight: Floats, longest_wait_s: Floats, share: float) -> Floats:
    """float64 [P]: the quantile of values [n, P] plus an independent wait, uniform on [0, longest_wait_s]."""
    low, high = values.min(axis=0), values.max(axis=0) + longest_wait_s
    width = np.maximum(longest_wait_s, 1e-300)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = weight @ np.clip((middle - values) / width, 0.0, 1.0) >= share * weight.sum()
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high
