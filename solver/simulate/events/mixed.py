"""What one iteration of decode rows and prompt chunks together costs.

Seen through a pipeline's tables, prompts cost by their tokens and rows by their number and context; an engine with a
hybrid kernel reads the weights once for both.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from solver.facts.workload import Floats
from solver.simulate.chunked import beside_rows_s
from solver.simulate.costs import Pipeline
from solver.simulate.events.costs import decode_parts
from solver.simulate.events.lookup import DecodeLookup

Chunk = tuple[int, int]
"""Prompt tokens encoded in this iteration, and how many of the same prompt were encoded before."""


class MixedCosts(Protocol):
    """Seconds per stage of one pipeline; `fused`: rows and chunks share a call, else chunks go first."""

    @property
    def stages(self) -> int: ...

    @property
    def return_s(self) -> float: ...

    @property
    def fused(self) -> bool: ...

    def mixed(self, rows: int, tokens: float, chunks: list[Chunk], parts: int) -> Floats:
        """float64 [parts, stages]: an iteration in `parts` micro-batches as equal as can be.

        Args:
          rows: that decode.
          tokens: positions that they attend to, together.
          chunks: prompt tokens beside them.
          parts: micro-batches.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class WorkloadMixedCosts:
    """By rows and tokens; a prompt token costs what it does in a prompt of the workload.

    Attributes:
      pipeline: its tables.
      mean_input: E[I] of their workload.
      fused: prompts and rows share one pass over the weights: beside rows, the fixed part of encoding (the intercept of
        its time by rows) is not paid. False: two calls.
      whole_prompts: of `solver.simulate.chunked.whole_prompts`.
    """

    pipeline: Pipeline
    mean_input: float
    fused: bool = True
    whole_prompts: int = 1

    @property
    def stages(self) -> int:
        return len(self.pipeline.stages)

    @property
    def return_s(self) -> float:
        return self.pipeline.return_s

    def mixed(self, rows: int, tokens: float, chunks: list[Chunk], parts: int) -> Floats:
        """float64 [parts, stages]."""
        total = np.zeros((parts, self.stages))
        if rows:
            total = decode_parts(self._lookup, np.array([rows]), np.array([tokens / rows]), parts)[0]
            total = total + self.pipeline.phase_s
        if chunks:
            prompts = sum(size for size, _ in chunks) / self.mean_input / parts
            if rows and self.fused:
                return total + beside_rows_s(self.pipeline, np.array([prompts]), self.whole_prompts)[:, 0]
            total = total + self.pipeline.encode_s(np.array(prompts))
        return total

    @functools.cached_property
    def _lookup(self) -> DecodeLookup:
        return DecodeLookup(self.pipeline)
