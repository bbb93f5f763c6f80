"""The least value of any stretch of a table, in constant time and for many stretches at once.

A sparse table holds the minima of all stretches of 1, 2, 4, ... entries; two of them, overlapping, cover any stretch.
It is what lets bounds do without monotone profiles (scheduling.md, 2.6 a): the least time over a range of batches is
looked up, not taken at one of its ends.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats, Ints


class RangeMinimum:
    """Minima over stretches of the first axis of a table.

    Attributes:
      size: entries along that axis.
    """

    def __init__(self, values: Floats) -> None:
        """`values`: float64 [size, ...]; the remaining axes are looked up together."""
        self.size = len(values)
        levels = [np.asarray(values, np.float64)]
        span = 1
        while 2 * span <= self.size:
            below = levels[-1]
            # Entries too close to the end for a whole stretch are never looked up; they keep the level below.
            level = below.copy()
            np.minimum(below[: self.size - span], below[span:], out=level[: self.size - span])
            levels.append(level)
            span *= 2
        self._flat = np.concatenate(levels)
        self._level = np.frexp(np.arange(1, self.size + 1, dtype=np.float64))[1].astype(np.int64) - 1

    def least(self, first: Ints, last: Ints) -> Floats:
        """float64 [stretches..., ...]: minima over first .. last, both included, 0 <= first <= last < size."""
        level = self._level[last - first]
        base = level * self.size
        low = self._flat[base + first]
        return np.minimum(low, self._flat[base + last + 1 - (1 << level)], out=low)
