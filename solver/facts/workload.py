"""What is known of the traffic: the joint distribution of input and output lengths, and when requests arrive.

A Workload is read from a preset or a trace (`solver.facts.workload_file`), made from moments
(`solver.facts.truncated_normal`), or estimated at run time. Formulas do not see it: they see the exact moments that
`solver.simulate.lengths` takes from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival.

    Attributes:
      arrival_s: float64 [requests]: from the first request on, not falling; None where the trace tells no times.
      input_tokens, output_tokens: int64 [requests], at least 1.
    """

    arrival_s: Floats | None
    input_tokens: Ints
    output_tokens: Ints


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """Joint distribution of lengths: pair p has probability `probability[p]`.

    Attributes:
      name: of the preset or file.
      source: where the numbers come from, for people.
      input_tokens: int64 [pairs], prompt tokens, at least 1.
      output_tokens: int64 [pairs], output tokens S with the end of sequence counted, at least 1.
      probability: float64 [pairs], positive, summing to 1.
      trace: the requests behind the distribution, where there are any.
    """

    name: str
    source: str
    input_tokens: Ints
    output_tokens: Ints
    probability: Floats
    trace: Trace | None = None

    def __post_init__(self) -> None:
        sizes = {array.shape for array in (self.input_tokens, self.output_tokens, self.probability)}
        if len(sizes) != 1 or self.probability.ndim != 1 or not self.probability.size:
            raise ValueError(f"workload {self.name}: lengths and probabilities are empty or differ in number")
        for field, lengths in (("input_tokens", self.input_tokens), ("output_tokens", self.output_tokens)):
            if lengths.min() < 1:
                raise ValueError(f"workload {self.name}: {field}: {lengths.min()} is too short; give at least 1")
        total = float(self.probability.sum())
        if not (np.isfinite(self.probability).all() and self.probability.min() > 0 and abs(total - 1) < TOLERANCE):
            raise ValueError(
                f"workload {self.name}: probability: sums to {total:.6g}; give positive shares that sum to 1"
            )

    @property
    def mean_input(self) -> float:
        return float(self.probability @ self.input_tokens)

    @property
    def mean_output(self) -> float:
        return float(self.probability @ self.output_tokens)

    @property
    def most_input(self) -> int:
        return int(self.input_tokens.max())

    @property
    def most_output(self) -> int:
        return int(self.output_tokens.max())

    @property
    def most_tokens(self) -> int:
        """Longest prompt plus output."""
        return int((self.input_tokens + self.output_tokens).max())

    @property
    def correlation(self) -> float:
        """Pearson's, of input and output length; 0 where either is constant."""
        p, inputs, outputs = self.probability, self.input_tokens, self.output_tokens
        i, s = inputs - self.mean_input, outputs - self.mean_output
        spread = float(np.sqrt((p @ i**2) * (p @ s**2)))
        return float(p @ (i * s)) / spread if spread > 0 else 0.0

    def output_percentile(self, percent: float) -> int:
        """The shortest output that `percent` of requests do not exceed."""
        order = np.argsort(self.output_tokens, kind="stable")
        share = np.cumsum(self.probability[order])
        index = int(np.searchsorted(share, percent / 100 - TOLERANCE))
        return int(self.output_tokens[order][min(index, len(order) - 1)])


def merge(name: str, source: str, inputs: Ints, outputs: Ints, weight: Floats, trace: Trace | None = None) -> Workload:
    """A Workload of weighted pairs in any order, equal pairs put together."""
    if not len(weight) or not np.isfinite(weight).all() or weight.min() < 0 or weight.sum() <= 0:
        raise ValueError(f"workload {name}: weights: need at least one request, none of them negative or infinite")
    # One number per pair sorts ten times as fast as rows of two.
    least, span = int(inputs.min()), int(inputs.max()) - int(inputs.min()) + 1
    keys, where = np.unique(outputs * span + (inputs - least), return_inverse=True)
    total = np.bincount(where.ravel(), weights=weight)
    kept = total > 0
    pairs = keys[kept]
    return Workload(name, source, pairs % span + least, pairs // span, total[kept] / total.sum(), trace)
