"""What the traffic is like now: a decayed estimate of prompt and output lengths from the rows that run.

Output lengths are hidden until a row ends, and short answers end first: right after a change, or while the batch fills,
the lengths of those that have finished are too short, and what the running rows have reached so far is too long
(whoever is long stays long in sight). So neither is averaged. Each phase every row counts once for each token that it
produced, as one that could have ended there, and once where it did end: the life table of a period (Kaplan and Meier's
estimate, 1958, of rows in sight now instead of rows born together). A row that is cancelled, or still runs, has told
what it knows; nobody's end is awaited. All counts fade with the number of rows that end, by half in `HALF_LIFE`.

Prompts are known at once and are simply counted, in the phase that encodes them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from solver.facts.histogram import Histogram
from solver.facts.workload import Floats, Ints

FirstToken = Literal["encode", "decode"]

# Rows that end while a count fades by half: about 2.6% of error in the mean of lengths that vary by half of it.
HALF_LIFE = 256.0


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """One phase, row by row.

    Attributes:
      before, after: int64 [rows]: output tokens of each row before and after the phase.
      ended: bool [rows]: its last token came by itself (a stop token, or the limit that was asked for).
      prompts: int64 [new rows]: prompt tokens of those whose first token came in it.
    """

    before: Ints
    after: Ints
    ended: np.ndarray
    prompts: Ints


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """Faded counts.

    Attributes:
      produced: float64 [most output + 1]: rows that produced their s-th token.
      ended: float64 [most output + 1]: of those, rows for which it was the last.
      prompts: float64 [most prompt + 1]: prompts of each length.
    """

    produced: Floats
    ended: Floats
    prompts: Floats

    @property
    def requests(self) -> float:
        """Rows that ended, faded: what the estimate rests on."""
        return float(self.ended.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """The distribution now.

    Attributes:
      inputs, outputs: of lengths in tokens.
      output_error: standard error of the mean output (Greenwood's).
      unseen: share of requests that are longer than anything seen; they count as the longest seen.
      requests, prompts: faded counts of rows that ended and of prompts.
      first_token: who emits it: an answer takes D = S - 1 decode iterations under "encode", S under "decode".
    """

    inputs: Histogram
    outputs: Histogram
    output_error: float
    unseen: float
    requests: float
    prompts: float
    first_token: FirstToken = "encode"

    @property
    def mean_input2(self) -> float:
        """E[I^2]."""
        return float(self.inputs.share @ self.inputs.lengths.astype(np.float64) ** 2)

    def mean_periods(self, decode_iterations: int) -> float:
        """E[ceil(D / N)]: phases that a row lives (scheduling.md, 2.2)."""
        decode = self.outputs.lengths - (1 if self.first_token == "encode" else 0)
        return float(self.outputs.share @ -(-decode // decode_iterations))


def no_tables(most_output: int, most_prompt: int) -> Tables:
    """Nothing seen yet; longer lengths than these never come."""
    return Tables(np.zeros(most_output + 1), np.zeros(most_output + 1), np.zeros(most_prompt + 1))


def observed(tables: Tables, seen: Seen, half_life: float = HALF_LIFE) -> Tables:
    """The tables after one more phase."""
    fade = 0.5 ** (np.count_nonzero(seen.ended) / half_life)
    size = len(tables.produced)
    steps = np.zeros(size + 1)
    np.add.at(steps, seen.before + 1, 1.0)
    np.add.at(steps, seen.after + 1, -1.0)
    ends = np.bincount(seen.after[seen.ended], minlength=size)
    prompts = np.bincount(seen.prompts, minlength=len(tables.prompts))
    return Tables(
        produced=fade * tables.produced + np.cumsum(steps)[:size],
        ended=fade * tables.ended + ends,
        prompts=fade * tables.prompts + prompts,
    )


def estimated(tables: Tables, first_token: FirstToken = "encode") -> Estimate | None:
    """The distribution that the tables tell; None before any row has ended and any prompt was encoded."""
    seen = np.flatnonzero(tables.produced > 0)
    if not len(seen) or tables.requests <= 0 or not tables.prompts.any():
        return None
    produced, ended = tables.produced[: seen[-1] + 1], tables.ended[: seen[-1] + 1]
    hazard = np.zeros(len(ended))
    np.divide(ended, produced, out=hazard, where=produced > 0)
    np.clip(hazard, 0.0, 1.0, out=hazard)
    # P(S > s) for s = 0 .. ; its sum is the mean.
    beyond = np.asarray(np.cumprod(1.0 - hazard), np.float64)
    share = -np.diff(beyond, prepend=1.0)
    unseen = float(beyond[-1])
    share[-1] += unseen
    outputs = np.flatnonzero(share > 0)
    prompts = np.flatnonzero(tables.prompts > 0)
    return Estimate(
        inputs=Histogram(prompts, tables.prompts[prompts] / tables.prompts.sum()),
        outputs=Histogram(outputs, share[outputs] / share[outputs].sum()),
        output_error=_error(hazard, produced, beyond),
        unseen=unseen,
        requests=tables.requests,
        prompts=float(tables.prompts.sum()),
        first_token=first_token,
    )


def _error(hazard: Floats, produced: Floats, beyond: Floats) -> float:
    """Greenwood's standard error of the mean: sum over s of (tokens still to come behind s)^2 h / (n (1 - h))."""
    behind = np.cumsum(beyond[::-1])[::-1] - beyond
    counts = (hazard > 0) & (hazard < 1)
    terms = behind[counts] ** 2 * hazard[counts] / (produced[counts] * (1.0 - hazard[counts]))
    return float(np.sqrt(terms.sum()))
