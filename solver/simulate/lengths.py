"""The exact moments of a workload that the formulas need: tails over decode iterations, inputs among those still alive.

D = S - f decode iterations belong to a request of S output tokens, where f = 1 if the encode phase emits the first
token (decoder-only models). The pair (I, D) enters the steady state only through P(D >= k), E[I 1{D >= k}] and
E[I^2 1{D >= k}], so the joint distribution is read once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from solver.facts.workload import Floats, Ints, Workload


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
    """Moments of one workload under one convention for the first token.

    Attributes:
      workload: what they are of.
      first_token: who emits it; "encode": D = S - 1, "decode": D = S.
      alive: float64 [k], k = 0 .. most_decode: P(D >= k); alive[0] is 1.
      input_alive, input2_alive: float64 [k]: E[I 1{D >= k}] and E[I^2 1{D >= k}].
    """

    workload: Workload
    first_token: Literal["encode", "decode"]
    alive: Floats
    input_alive: Floats
    input2_alive: Floats

    @property
    def most_decode(self) -> int:
        return len(self.alive) - 1

    @property
    def mean_input(self) -> float:
        return float(self.input_alive[0])

    @property
    def mean_input2(self) -> float:
        return float(self.input2_alive[0])

    @property
    def mean_decode(self) -> float:
        """E[D]."""
        return float(self.alive[1:].sum())

    def decode_percentile(self, percent: float) -> int:
        """D of the shortest output that `percent` of requests do not exceed."""
        return _decode_percentile(self, percent)


@dataclasses.dataclass(frozen=True, eq=False)
class Residents:
    """Rows in an RRA phase of N iterations per admitted request (scheduling.md, 2.2); times B_E gives the batch.

    Attributes:
      rows: float64 [N]: n_u / B_E, not rising; rows[0] = E[ceil(D / N)].
      context: float64 [N]: c_u, mean tokens of a resident at iteration u; where no row is left, that of the row before.
      rows_variance: Var[n_1] / B_E.
      tokens: float64 [N]: tok_u / B_E.
      tokens_variance: float64 [N]: Var[tok_u] / B_E.
    """

    rows: Floats
    context: Floats
    rows_variance: float
    tokens: Floats
    tokens_variance: Floats


@functools.lru_cache(maxsize=64)
def _decode_percentile(lengths: Lengths, percent: float) -> int:
    """Kept, since it sorts every pair and is asked for at every N."""
    return lengths.workload.output_percentile(percent) - (1 if lengths.first_token == "encode" else 0)


def lengths_of(workload: Workload, first_token: Literal["encode", "decode"]) -> Lengths:
    """Reads the joint distribution once."""
    decode = workload.output_tokens - (1 if first_token == "encode" else 0)
    inputs = workload.input_tokens.astype(np.float64)
    alive = _tail(decode, workload.probability)
    alive = np.minimum(alive, 1.0)  # sums of shares may end a rounding above
    alive[0] = 1.0
    input_alive = _tail(decode, workload.probability * inputs)
    return Lengths(workload, first_token, alive, input_alive, _tail(decode, workload.probability * inputs**2))


def _tail(decode: Ints, weight: Floats) -> Floats:
    """Total weight of the pairs with D >= k, at k = 0 .. ."""
    return np.cumsum(np.bincount(decode, weights=weight)[::-1])[::-1].astype(np.float64)


@functools.lru_cache(maxsize=4096)
def residents(lengths: Lengths, iterations: int) -> Residents:
    """The steady state under N = `iterations`: cohorts of every age, each B_E requests at its birth."""
    alive, inputs, inputs2 = (
        _by_age(tail, iterations) for tail in (lengths.alive, lengths.input_alive, lengths.input2_alive)
    )
    # Tokens of a resident of age a at iteration u: its prompt and the aN + u - 1 iterations behind it.
    behind = np.arange(alive.size, dtype=np.float64).reshape(alive.shape)
    tokens = inputs + behind * alive
    tokens2 = inputs2 + 2 * behind * inputs + behind**2 * alive
    rows, sums = alive.sum(axis=0), tokens.sum(axis=0)
    context = np.divide(sums, rows, out=np.zeros_like(sums), where=rows > 0)
    filled = np.maximum.accumulate(np.where(rows > 0, np.arange(iterations), 0))
    born = alive[:, 0]
    return Residents(
        rows=rows,
        context=context[filled],
        rows_variance=float((born * (1 - born)).sum()),
        tokens=sums,
        tokens_variance=(tokens2 - tokens**2).sum(axis=0),
    )


def _by_age(tail: Floats, iterations: int) -> Floats:
    """Tail values at k = 1 .. as [ages, N]; zero behind the end."""
    ages = max(1, -(-(len(tail) - 1) // iterations))
    padded = np.zeros(ages * iterations)
    padded[: len(tail) - 1] = tail[1:]
    return padded.reshape(ages, iterations)
