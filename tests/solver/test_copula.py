"""Correlated lengths: exact margins, the correlation asked for, and agreement with sampled normals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solver.facts.copula import joint_pmf
from solver.facts.histogram import Histogram, binned, histogram, joint, margins, within
from solver.facts.truncated_normal import Moments, lengths_pmf


def normal(mean: float, std: float, most: int) -> Histogram:
    return histogram(np.arange(1, most + 1), lengths_pmf(Moments(mean, std, most, "parent")))


TRANSLATION = (normal(128, 81, 256), normal(117.8, 79.9, 320))
FEW = (Histogram(np.array([10, 20, 900]), np.array([0.5, 0.3, 0.2])), normal(30, 10, 60))


@pytest.mark.parametrize("sides", [TRANSLATION, FEW], ids=["translation", "three lengths"])
@pytest.mark.parametrize("correlation", [-0.4, 0.15, 0.57])
def test_margins_are_exact_and_the_correlation_is_the_wanted_one(
    sides: tuple[Histogram, Histogram], correlation: float
) -> None:
    first, second = sides
    cells = joint_pmf(first, second, correlation)
    assert cells.min() >= 0
    assert cells.sum(axis=1) == pytest.approx(first.share, abs=1e-9)
    assert cells.sum(axis=0) == pytest.approx(second.share, abs=1e-9)
    made = joint("made", "", first, second, cells)
    assert made.correlation == pytest.approx(correlation, abs=2e-3)


def test_strong_correlation_of_translation() -> None:
    assert joint("made", "", *TRANSLATION, joint_pmf(*TRANSLATION, 0.94)).correlation == pytest.approx(0.94, abs=1e-3)


def test_against_sampled_normals() -> None:
    """Mean output given a short and given a long input, from draws of the two normals."""
    first, second = TRANSLATION
    cells = joint_pmf(first, second, 0.6)
    rng = np.random.default_rng(3)
    # The normals' own correlation, found by sampling: the lengths' is a little smaller.
    shared, own = rng.normal(size=(2, 100_000))
    best, conditional = math.inf, np.zeros(2)
    for rho in np.linspace(0.59, 0.66, 8):
        pair = (shared, rho * shared + math.sqrt(1 - rho**2) * own)
        lengths = [drawn(side, z) for side, z in zip(TRANSLATION, pair, strict=True)]
        distance = abs(float(np.corrcoef(*lengths)[0, 1]) - 0.6)
        if distance < best:
            best = distance
            short = lengths[0] <= 64
            conditional = np.array([lengths[1][short].mean(), lengths[1][~short].mean()])
    rows = first.lengths <= 64
    exact = [cells[part].sum(axis=0) @ second.lengths / cells[part].sum() for part in (rows, ~rows)]
    assert exact == pytest.approx(conditional, rel=0.02)


def drawn(side: Histogram, z: np.ndarray) -> np.ndarray:
    order = np.argsort(np.argsort(z))
    index = np.searchsorted(np.cumsum(side.share), (order + 0.5) / len(z))
    return side.lengths[np.minimum(index, len(side.lengths) - 1)]


def test_without_correlation_it_is_the_product() -> None:
    first, second = TRANSLATION
    assert (joint_pmf(first, second, 0.0) == np.outer(first.share, second.share)).all()


@pytest.mark.parametrize("correlation", [1.5, math.nan])
def test_refuses_what_is_no_correlation(correlation: float) -> None:
    with pytest.raises(ValueError, match=r"correlation: .* out of range; give -1 to 1"):
        joint_pmf(*TRANSLATION, correlation)


def test_refuses_what_lengths_cannot_reach() -> None:
    with pytest.raises(ValueError, match=r"correlation: 0.99 cannot be reached with these lengths; give -0\.\d+ to 0"):
        joint_pmf(*FEW, 0.99)
    with pytest.raises(ValueError, match="never varies"):
        joint_pmf(Histogram(np.array([5]), np.array([1.0])), FEW[1], 0.5)


def test_margins_of_a_joint_workload_are_its_histograms() -> None:
    made = joint("made", "", *TRANSLATION)
    for side, given in zip(margins(made), TRANSLATION, strict=True):
        assert (side.lengths == given.lengths).all()
        assert side.share == pytest.approx(given.share, abs=1e-12)


def test_binning_keeps_the_mean_and_nearly_the_percentiles() -> None:
    rng = np.random.default_rng(8)
    lengths = np.unique(np.ceil(rng.lognormal(6, 1.5, 20_000)).astype(np.int64))
    given = histogram(lengths, rng.uniform(0.1, 1, len(lengths)))
    few = binned(given, 200)
    assert len(few.lengths) <= 200 < len(given.lengths)
    assert few.mean == pytest.approx(given.mean, abs=0.5)
    assert few.lengths[-1] == given.lengths[-1]
    for percent in (50, 90, 99):
        assert few.percentile(percent) == pytest.approx(given.percentile(percent), rel=0.08)


def test_a_product_of_too_many_pairs_is_binned_and_said_so() -> None:
    sides = (normal(2000, 900, 5000), normal(900, 500, 3000))
    inputs, outputs, said = within(*sides)
    assert len(inputs.lengths) * len(outputs.lengths) <= 1_000_000
    assert "lengths binned to" in said
    assert within(*TRANSLATION)[2] == ""
