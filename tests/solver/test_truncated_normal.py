"""Truncated normals: the paper's Table 3 to the token, the parent against sampling and against its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solver.facts.truncated_normal import Moments, deviation_limit, lengths_pmf, parent

# Output mean, deviation, maximum and published 99th percentile; the parents of scheduling.md, 1.2.
TABLE_3 = {
    "S": (32, 13, 80, 63, (31.7, 13.4)),
    "T": (128, 68, 320, 292, (117.8, 79.9)),
    "G": (192, 93, 480, 417, (184.3, 102.1)),
    "C1": (64, 30, 160, 137, (62.0, 32.4)),
    "C2": (256, 134, 640, 579, (237.7, 155.3)),
}


@pytest.mark.parametrize("task", TABLE_3)
def test_a1_the_papers_99th_percentiles(task: str) -> None:
    mean, std, most, published, parameters = TABLE_3[task]
    given = Moments(mean, std, most, "truncated")
    pmf = lengths_pmf(given)
    assert 1 + int(np.searchsorted(np.cumsum(pmf), 0.99)) == published
    assert parent(given) == pytest.approx(parameters, abs=0.06)


def simpson(mean: float, std: float, most: int, points: int = 20_001) -> tuple[float, float]:
    """Moments of the cut normal by a rule that the code does not use."""
    x = np.linspace(0, most, points)
    weight = np.ones(points)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    density = weight * np.exp(-(((x - mean) / std) ** 2) / 2)
    density /= density.sum()
    centre = float(density @ x)
    return centre, math.sqrt(float(density @ (x - centre) ** 2))


def test_the_parent_has_the_moments_after_the_cut() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        most = int(rng.integers(5, 2000))
        mean = float(rng.uniform(0.05, 0.95)) * most
        std = float(rng.uniform(0.05, 0.97)) * deviation_limit(mean, most)
        given = Moments(mean, std, most, "truncated")
        assert simpson(*parent(given), most) == pytest.approx((mean, std), rel=2e-4)


@pytest.mark.parametrize(
    "given", [Moments(128, 68, 320, "truncated"), Moments(256, 252, 512, "parent"), Moments(-20, 60, 100, "parent")]
)
def test_the_distribution_against_sampling(given: Moments) -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(*parent(given), 2_000_000)
    lengths = np.ceil(x[(x > 0) & (x <= given.most)]).astype(int)
    counts = np.bincount(lengths, minlength=given.most + 1)[1:]
    pmf = lengths_pmf(given)
    expected = pmf * counts.sum()
    assert pmf.sum() == pytest.approx(1, abs=1e-12)
    # Five deviations of a count, plus one for empty cells.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()


def test_rounding_up_adds_half_a_token_to_the_mean() -> None:
    pmf = lengths_pmf(Moments(32, 13, 80, "truncated"))
    assert pmf @ np.arange(1, 81) == pytest.approx(32.5, abs=1e-3)


def test_no_deviation_is_one_length() -> None:
    assert lengths_pmf(Moments(7.2, 0, 10, "parent")).tolist() == [0] * 7 + [1, 0, 0]


def test_far_tails_keep_their_shape() -> None:
    """Cells 20 deviations out are differences of numbers near 1 if computed carelessly."""
    pmf = lengths_pmf(Moments(-200, 10, 10, "parent"))
    inside = (np.arange(10)[:, None] + (np.arange(100) + 0.5) / 100 + 200) / 10
    density = np.exp(-(inside**2) / 2).sum(axis=1)
    assert pmf == pytest.approx(density / density.sum(), rel=1e-4)


def test_the_limit_is_the_uniforms_in_the_middle_and_the_exponentials_aside() -> None:
    assert deviation_limit(256, 512) == pytest.approx(512 / math.sqrt(12), rel=1e-9)
    assert deviation_limit(1, 10_000) == pytest.approx(1, rel=1e-6)
    assert deviation_limit(30, 100) == pytest.approx(deviation_limit(70, 100), rel=1e-9)


@pytest.mark.parametrize(("mean", "std", "most"), [(256, 252, 512), (128, 81, 256), (10, 12, 1000)])
def test_impossible_moments_name_the_limit_and_the_remedy(mean: float, std: float, most: int) -> None:
    with pytest.raises(ValueError, match=r"std: \d+ after truncation .* exceeds .*moments=parent"):
        lengths_pmf(Moments(mean, std, most, "truncated"))
    assert lengths_pmf(Moments(mean, std, most, "parent")).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("mean", "std", "most", "which", "message"),
    [
        (10, 1, 0, "parent", "most: 0 is out of range"),
        (10, -1, 20, "parent", "std: -1 is no deviation"),
        (10, math.nan, 20, "parent", "std: nan is no deviation"),
        (math.nan, 1, 20, "truncated", "mean: nan is no finite"),
        (0, 1, 20, "truncated", "mean: 0 lies outside"),
        (21, 1, 20, "truncated", "mean: 21 lies outside"),
        (21, 0, 20, "parent", "mean: 21 lies outside"),
        (1e6, 1, 20, "parent", "leaves nothing in 0 to most=20"),
        (10, 9.99999, 1000, "truncated", "too near to the limit"),
    ],
)
def test_refusals(mean: float, std: float, most: int, which: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths_pmf(Moments(mean, std, most, which))
