"""Lengths from three figures: L = ceil(X), X normal and cut off outside [0, most].

The figures may be the moments of X after the cut (ExeGPT's output lengths, ASPLOS 2024, Table 3, reproduced to the
token) or those of the uncut normal, its parent (the only reading under which Table 3's input lengths exist). Who gives
them says which; nothing is guessed. A deviation of 0 means that every length is the same.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from solver.facts.workload import Floats

MOST_TOKENS = 10_000_000

_REACH = 40.0
# Deviations between a parent's mean and the interval beyond which doubles hold no tail.
_FAR = 35.0
_PANELS, _NODES = 32, 24
_STEPS = 200
_CLOSE = 1e-12


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean, deviation and maximum of X, in tokens.

    Attributes:
      mean, std: of X after the cut ("truncated") or before it ("parent").
      most: longest length.
      moments: which of the two they are.
    """

    mean: float
    std: float
    most: int
    moments: Literal["truncated", "parent"]

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST_TOKENS:
            raise ValueError(f"most: {self.most} is out of range; give 1 to {MOST_TOKENS} tokens")
        if not (math.isfinite(self.std) and self.std >= 0):
            raise ValueError(f"std: {self.std} is no deviation; give 0 or more tokens")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean: {self.mean} is no finite number of tokens")
        inside = 0 < self.mean <= self.most
        if not inside and (self.moments == "truncated" or self.std == 0):
            raise ValueError(f"mean: {self.mean:g} lies outside 0 to most={self.most}; give a mean between them")


def lengths_pmf(given: Moments) -> Floats:
    """P(L = 1), ..., P(L = most), float64 [most], summing to 1. Raises ValueError with one line if impossible."""
    if given.std == 0:
        pmf = np.zeros(given.most)
        pmf[math.ceil(given.mean) - 1] = 1.0
        return pmf
    mean, std = parent(given)
    edges = (np.arange(given.most + 1) - mean) / (std * math.sqrt(2.0))
    # Differences of small tails instead of differences of numbers near 1.
    below = np.array([math.erfc(-edge) for edge in np.minimum(edges, 0.0).tolist()])
    above = np.array([math.erfc(edge) for edge in np.maximum(edges, 0.0).tolist()])
    mass = np.diff(below) - np.diff(above)
    total = float(mass.sum())
    if not total > 0:
        raise ValueError(
            f"mean: {given.mean:g} with std={given.std:g} leaves nothing in 0 to most={given.most}; "
            "raise std or give a mean between them"
        )
    pmf = np.maximum(mass, 0.0) / total
    return np.asarray(pmf / pmf.sum())


def parent(given: Moments) -> tuple[float, float]:
    """Mean and deviation of the uncut normal.

    Among densities exp(a z + b z^2) on the interval exactly one has a given mean and deviation; it is a cut normal
    where b < 0. Its b rises with the deviation and reaches 0 at that of the truncated exponential, the limit (at a mean
    of most / 2 the uniform's most / sqrt(12)).

    Raises:
      ValueError: the deviation exceeds that limit; the line names it.
    """
    if given.moments == "parent":
        return given.mean, given.std
    limit = deviation_limit(given.mean, given.most)
    if given.std >= limit:
        raise ValueError(
            f"std: {given.std:g} after truncation to 0..{given.most} is impossible at mean {given.mean:g}, where no "
            f"truncated normal exceeds {limit:.4g}; lower it, or give the parent's moments and say so (moments=parent)"
        )
    nodes, weights = _quadrature(given.mean, given.std, given.most)
    z = (nodes - given.mean) / given.std
    a, b = _fit(np.stack([z, z**2]), weights, np.array([0.0, 1.0]), np.array([0.0, -0.5]))
    variance = -0.5 / b if b < 0 else math.inf
    mean, std = given.mean + given.std * float(a) * variance, given.std * math.sqrt(variance)
    if not max(-mean, mean - given.most) < _FAR * std < math.inf:
        raise ValueError(
            f"std: {given.std:g} at mean {given.mean:g} is too near to the limit {limit:.6g}; lower it slightly"
        )
    return mean, std


def deviation_limit(mean: float, most: int) -> float:
    """Deviation of the truncated exponential on [0, most] with that mean: above it no truncated normal exists."""
    nearest = min(mean, most - mean)
    if nearest <= 0:
        return 0.0
    nodes, weights = _quadrature(mean, nearest, most)
    z = (nodes - mean) / nearest
    start = -1.0 if mean < most / 2 else 1.0
    (a,) = _fit(z[None, :], weights, np.array([0.0]), np.array([start]))
    density = weights * np.exp(a * z - (a * z).max())
    return nearest * math.sqrt(float(density @ z**2 / density.sum()))


def _quadrature(mean: float, scale: float, most: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on what lies within 40 scales of the mean (beyond it there is nothing)."""
    low, high = max(0.0, mean - _REACH * scale), min(float(most), mean + _REACH * scale)
    x, w = np.polynomial.legendre.leggauss(_NODES)
    edges = np.linspace(low, high, _PANELS + 1)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()


def _fit(features: Floats, weights: Floats, target: Floats, start: Floats) -> Floats:
    """Parameters t of the density exp(t @ features) whose mean features are `target`: damped Newton, convex."""
    t = start
    value, mean, covariance = _partition(features, weights, t)
    for _ in range(_STEPS):
        gap = mean - target
        if np.abs(gap).max() < _CLOSE:
            break
        step = np.linalg.solve(covariance, gap)
        size = 1.0
        while size > _CLOSE:
            trial = t - size * step
            found = _partition(features, weights, trial)
            fallen = (value - float(t @ target)) - (found[0] - float(trial @ target))
            if fallen >= 1e-4 * size * float(gap @ step):
                break
            size /= 2
        else:
            break
        t, (value, mean, covariance) = trial, found
    return t


def _partition(features: Floats, weights: Floats, t: Floats) -> tuple[float, Floats, Floats]:
    """log of the total, mean and covariance of the features."""
    exponent = t @ features
    top = float(exponent.max())
    density = weights * np.exp(exponent - top)
    total = float(density.sum())
    share = density / total
    mean = features @ share
    return top + math.log(total), mean, (features * share) @ features.T - np.outer(mean, mean)
