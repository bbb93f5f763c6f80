"""A distribution of one length: distinct lengths, rising, and their shares; two of them make a Workload.

Between files of counts or moments on one side and the joint distribution on the other. Where the product of two
histograms would have too many pairs, long lengths are put together in bins, and the workload's source says so.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints, Workload

MOST_PAIRS = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """One length's distribution.

    Attributes:
      lengths: int64 [n], at least 1, strictly rising.
      share: float64 [n], positive, summing to 1.
    """

    lengths: Ints
    share: Floats

    @property
    def mean(self) -> float:
        return float(self.share @ self.lengths)

    @property
    def std(self) -> float:
        return math.sqrt(float(self.share @ (self.lengths - self.mean) ** 2)) if len(self.lengths) > 1 else 0.0

    def percentile(self, percent: float) -> int:
        """The shortest length that `percent` do not exceed."""
        index = int(np.searchsorted(np.cumsum(self.share), percent / 100 - 1e-9))
        return int(self.lengths[min(index, len(self.lengths) - 1)])


def histogram(lengths: Ints, weight: NDArray[Any]) -> Histogram:
    """Equal lengths put together, those without weight left out. Weights: not negative, not all zero."""
    values, where = np.unique(lengths, return_inverse=True)
    total = np.bincount(where.ravel(), weights=weight)
    kept = total > 0
    return Histogram(values[kept], total[kept] / total.sum())


def margins(workload: Workload) -> tuple[Histogram, Histogram]:
    """Of input and output lengths."""
    p = workload.probability
    return histogram(workload.input_tokens, p), histogram(workload.output_tokens, p)


def binned(given: Histogram, most: int) -> Histogram:
    """About `most` lengths (at least 64) in place of more: each bin at its rounded mean.

    The mean moves by less than half a token, a percentile by less than a bin.
    """
    bins = bins_of(given.lengths, most)
    share = np.bincount(bins, weights=given.share)
    middle = np.bincount(bins, weights=given.share * given.lengths) / share
    return histogram(np.rint(middle).astype(np.int64), share)


def bins_of(lengths: Ints, most: int) -> Ints:
    """The bin of each of these rising lengths; widths grow with the length, short ones and the longest stay alone."""
    most = max(64, most)
    ratio, bins = 1.0, np.arange(len(lengths))
    while bins[-1] >= most:
        ratio += 0.0025
        first = math.ceil(1 / (ratio - 1))
        far = np.floor(np.log(np.maximum(lengths, first) / first) / math.log(ratio)).astype(np.int64)
        bins = np.where(lengths <= first, lengths, first + 1 + far)
        bins[-1] += 1
        bins = np.unique(bins, return_inverse=True)[1].ravel()
    return bins


def joint(name: str, source: str, inputs: Histogram, outputs: Histogram, pairs: Floats | None = None) -> Workload:
    """A Workload from two histograms: independent, or with `pairs` float64 [inputs, outputs] as joint shares."""
    share = (np.outer(inputs.share, outputs.share) if pairs is None else pairs).T
    kept = share > 0
    output, index = np.nonzero(kept)
    return Workload(name, source, inputs.lengths[index], outputs.lengths[output], share[kept] / share[kept].sum(), None)


def within(inputs: Histogram, outputs: Histogram, most_pairs: int = MOST_PAIRS) -> tuple[Histogram, Histogram, str]:
    """Both, binned where their product has more than `most_pairs` pairs; and a phrase that says so, else empty."""
    if len(inputs.lengths) * len(outputs.lengths) <= most_pairs:
        return inputs, outputs, ""
    side = math.isqrt(most_pairs)
    short_in = binned(inputs, max(side, most_pairs // len(outputs.lengths)))
    short_out = binned(outputs, max(side, most_pairs // len(short_in.lengths)))
    text = (
        f"; lengths binned to {len(short_in.lengths)} x {len(short_out.lengths)}, which moves the mean by "
        f"{_moved(short_in.mean, inputs.mean)} (input) and {_moved(short_out.mean, outputs.mean)} (output), "
        f"the 99th by {_moved(short_in.percentile(99), inputs.percentile(99))} and "
        f"{_moved(short_out.percentile(99), outputs.percentile(99))}"
    )
    return short_in, short_out, text


def _moved(new: float, old: float) -> str:
    return f"{100 * (new / old - 1):+.2f}%"
