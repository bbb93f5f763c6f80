"""What one iteration of decode rows and prompt chunks together costs.

The matrix products run once over all tokens; attention of rows and of chunks is added. Seen through a pipeline's
tables: chunk and rows' tokens encoded together, plus what rows cost with their context beyond rows with the shortest.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from solver.facts.workload import Floats
from solver.simulate.costs import Pipeline

Chunk = tuple[int, int]
"""Prompt tokens encoded in this iteration, and how many of the same prompt were encoded before."""


class MixedCosts(Protocol):
    """Seconds per stage of one pipeline."""

    @property
    def stages(self) -> int: ...

    @property
    def return_s(self) -> float: ...

    def mixed(self, rows: int, tokens: float, chunks: list[Chunk], parts: int) -> Floats:
        """float64 [parts, stages]: an iteration in `parts` micro-batches that are alike.

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
    """

    pipeline: Pipeline
    mean_input: float

    @property
    def stages(self) -> int:
        return len(self.pipeline.stages)

    @property
    def return_s(self) -> float:
        return self.pipeline.return_s

    def mixed(self, rows: int, tokens: float, chunks: list[Chunk], parts: int) -> Floats:
        """float64 [parts, stages]."""
        decoded = np.zeros(self.stages)
        encoded = sum(size for size, _ in chunks)
        if rows:
            decoded = self.pipeline.decode_s(np.array(rows / parts), np.array(tokens / rows))
        if not encoded:
            return np.tile(decoded + self.pipeline.phase_s / parts, (parts, 1))
        if not rows:
            return np.tile(self._prompts_s(encoded / parts), (parts, 1))
        bare = self.pipeline.decode_s(np.array(rows / parts), self.pipeline.contexts[0])
        together = self._prompts_s((encoded + rows) / parts) + decoded - bare
        return np.tile(np.minimum(together, self._prompts_s(encoded / parts) + decoded), (parts, 1))

    def _prompts_s(self, tokens: float) -> Floats:
        """float64 [stages]; less than one prompt costs what the table's slope between its first two rows says."""
        prompts = tokens / self.mean_input
        if prompts >= 1:
            return self.pipeline.encode_s(np.array(prompts))
        one, two = self.pipeline.encode_rows_s[:, 1], self.pipeline.encode_rows_s[:, min(2, self.pipeline.most_rows)]
        return np.maximum(one - (1 - prompts) * np.maximum(two - one, 0.0), prompts * one)
