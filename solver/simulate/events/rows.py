"""Who decodes in an event simulation, counted by the iteration in which each row ends.

Iterations are numbered from 1 through the whole run. A row of D decode iterations that joins after iteration g takes
part in g + 1 .. g + D; at its first it attends to its I prompt tokens, then to one more each time. So a batch is two
columns, rows and tokens that leave at each iteration, and a phase of any length costs a few sums.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats, Ints


class Rows:
    """The rows of one decode pipeline.

    Attributes:
      iteration: the last one that ran.
      live: rows that take part in the next one.
      tokens: positions that they attend to in it, together.
    """

    def __init__(self) -> None:
        self.iteration = 0
        self.live = 0
        self.tokens = 0.0
        self._ending = np.zeros(4096, np.int64)
        self._ending_tokens = np.zeros(4096)

    def join(self, inputs: Ints, decode: Ints) -> Ints:
        """Lets rows in before the next iteration and returns the iteration in which each ends; D = 0 never decodes."""
        ends = self.iteration + decode
        self._grow(int(ends.max(initial=0)) + 1)
        stays = decode > 0
        if not stays.all():
            inputs, decode, at = inputs[stays], decode[stays], ends[stays]
        else:
            at = ends
        if len(at):
            np.add.at(self._ending, at, 1)
            np.add.at(self._ending_tokens, at, inputs + decode - 1)
            self.live += len(at)
            self.tokens += float(inputs.sum())
        return ends

    def ahead(self, iterations: int) -> tuple[Ints, Floats]:
        """Rows and their tokens, int64 and float64 [iterations], at each of the next iterations if nobody joins."""
        first = self.iteration + 1
        self._grow(first + iterations)
        left = self._ending[first : first + iterations - 1]
        rows = np.empty(iterations, np.int64)
        rows[0] = self.live
        rows[1:] = self.live - np.cumsum(left)
        tokens = np.empty(iterations)
        tokens[0] = self.tokens
        tokens[1:] = self.tokens + np.cumsum(rows[1:] - self._ending_tokens[first : first + iterations - 1])
        return rows, tokens

    def run(self, iterations: int) -> None:
        """The next iterations have happened."""
        rows, tokens = self.ahead(iterations + 1)
        self.iteration += iterations
        self.live, self.tokens = int(rows[-1]), float(tokens[-1])

    def step(self) -> int:
        """One iteration has happened; returns how many rows ended with it. As `run(1)`, without arrays."""
        self.iteration += 1
        self._grow(self.iteration + 1)
        ended = int(self._ending[self.iteration])
        self.live -= ended
        self.tokens += self.live - float(self._ending_tokens[self.iteration])
        return ended

    def _grow(self, size: int) -> None:
        if size > len(self._ending):
            more = max(size, 2 * len(self._ending)) - len(self._ending)
            self._ending = np.concatenate([self._ending, np.zeros(more, np.int64)])
            self._ending_tokens = np.concatenate([self._ending_tokens, np.zeros(more)])


def context(rows: Ints, tokens: Floats) -> Floats:
    """Mean tokens of a row at each iteration; where no row is left, that of the iteration before."""
    mean = np.divide(tokens, rows, out=np.zeros(len(rows)), where=rows > 0)
    filled = np.maximum.accumulate(np.where(rows > 0, np.arange(len(rows)), 0))
    return mean[filled]
