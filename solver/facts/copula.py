"""Two length distributions joined with a wanted correlation: a Gaussian copula, the margins kept exactly.

Input and output are the quantiles of two standard normals of correlation rho. rho is chosen so that Pearson's
correlation of the lengths is the wanted one (scheduling.md 1.2: 0.08 to 0.21 for most tasks of the paper, 0.57 to 0.94
for translation). Without correlation the joint distribution is the product.
"""

from __future__ import annotations

import math
import statistics

import numpy as np

from solver.facts.histogram import Histogram
from solver.facts.workload import Floats

_TERMS = 400
_SLICES = 256
_MOST_RHO = 0.999
_HALVINGS = 40
_ROUNDS = 500
_CLOSE = 1e-13


def joint_pmf(first: Histogram, second: Histogram, correlation: float) -> Floats:
    """float64 [first lengths, second lengths] with these margins and that correlation of lengths.

    Raises:
      ValueError: no joint distribution of this family has that correlation; the line says what there is.
    """
    if not (math.isfinite(correlation) and -1 <= correlation <= 1):
        raise ValueError(f"correlation: {correlation} is out of range; give -1 to 1")
    if correlation == 0:
        return np.outer(first.share, second.share)
    cells = _cells(first.share, second.share, _rho(first, second, correlation))
    return _scaled(cells, first.share, second.share)


def _rho(first: Histogram, second: Histogram, correlation: float) -> float:
    """By halving: the lengths' correlation rises with the normals'."""
    low, high = -_MOST_RHO, _MOST_RHO
    coefficients = _hermite(first) * _hermite(second)
    powers = np.arange(1, _TERMS + 1)

    def reached(rho: float) -> float:
        return float(coefficients @ rho**powers)

    if not reached(low) <= correlation <= reached(high):
        raise ValueError(
            f"correlation: {correlation:g} cannot be reached with these lengths; "
            f"give {reached(low):.3f} to {reached(high):.3f}"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < correlation else (low, middle)
    return (low + high) / 2


def _hermite(lengths: Histogram) -> Floats:
    """Coefficients of length (standardised) as a function of a standard normal, in normalised Hermite polynomials 1 ...

    By Mehler's formula the correlation of two such functions is the sum over k of rho^k times both coefficients. The
    length is a step function: a step up at z adds phi(z) h_{k-1}(z) / sqrt(k) to the k-th coefficient.
    """
    if lengths.std == 0:
        raise ValueError("correlation: one of the lengths never varies; leave the correlation at 0")
    z = _normal_quantile(np.cumsum(lengths.share)[:-1])
    steps = np.diff(lengths.lengths) / lengths.std
    z, steps = z[np.isfinite(z)], steps[np.isfinite(z)]
    below, here = np.zeros_like(z), np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    coefficients = np.empty(_TERMS)
    for k in range(1, _TERMS + 1):
        coefficients[k - 1] = steps @ here / math.sqrt(k)
        below, here = here, (z * here - math.sqrt(k - 1) * below) / math.sqrt(k)
    return coefficients


def _cells(first: Floats, second: Floats, rho: float) -> Floats:
    """Each first length's share in slices, each slice at its median; the second given it, cell by cell."""
    slices = np.ceil(first * _SLICES).astype(np.int64)
    row = np.repeat(np.arange(len(first)), slices)
    mass = (first / slices)[row]
    z = _normal_quantile(np.cumsum(mass) - mass / 2)
    edges = _normal_quantile(np.concatenate([[0.0], np.cumsum(second)[:-1], [1.0]]))
    below = _normal_cdf((edges[None, :] - rho * z[:, None]) / math.sqrt(1 - rho**2))
    given = mass[:, None] * np.maximum(np.diff(below, axis=1), 0.0)
    return np.add.reduceat(given, np.cumsum(slices) - slices, axis=0)


def _scaled(cells: Floats, first: Floats, second: Floats) -> Floats:
    """Rows and columns scaled in turn until both margins are exact; a touch of independence leaves no cell empty."""
    cells = cells + 1e-12 * np.outer(first, second)
    for _ in range(_ROUNDS):
        columns = cells.sum(axis=0)
        cells = cells * np.divide(second, columns, out=np.zeros_like(second), where=columns > 0)
        rows = cells.sum(axis=1)
        if np.abs(rows - first).max() < _CLOSE:
            break
        cells = cells * np.divide(first, rows, out=np.zeros_like(first), where=rows > 0)[:, None]
    return np.asarray(cells / cells.sum())


def _normal_cdf(z: Floats) -> Floats:
    return np.array([math.erfc(x) for x in (-z / math.sqrt(2.0)).ravel().tolist()]).reshape(z.shape) / 2


def _normal_quantile(share: Floats) -> Floats:
    """z with P(Z <= z) = share; infinite at 0 and 1. The standard library's inverse, entry by entry."""
    inverse = statistics.NormalDist().inv_cdf
    found = [inverse(p) if 0 < p < 1 else math.copysign(math.inf, p - 0.5) for p in share.tolist()]
    return np.array(found)
