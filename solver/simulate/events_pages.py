"""Pages of a paged cache, counted without looking at single rows.

A row that joins after iteration g with p positions writes position p + i - g - 1 at iteration i, and opens a page where
that is a multiple of the page's size: at the iterations i = g + 1 - p (mod page). Rows are counted by that remainder.
"""

from __future__ import annotations

import math


class Pages:
    """Free pages, and how many more each coming iteration needs.

    Args:
      tokens: positions that the cache holds; inf: no limit.
      page: positions of a page.
    """

    def __init__(self, tokens: float, page: int) -> None:
        self._page = page
        self._free = math.inf if math.isinf(tokens) else int(tokens) // page
        self._used = 0
        self._opening = [0] * page

    @property
    def used_tokens(self) -> int:
        """Positions in taken pages."""
        return self._used * self._page

    def take(self, tokens: int) -> bool:
        """Takes the pages of so many positions, all or none."""
        return self._take(self._pages(tokens))

    def give_back(self, tokens: int) -> None:
        self._take(-self._pages(tokens))

    def join(self, iteration: int, tokens: int) -> None:
        """A row of so many positions grows by one at each iteration behind this one."""
        self._opening[(iteration + 1 - tokens) % self._page] += 1

    def leave(self, iteration: int, joined_tokens: int, tokens: int) -> None:
        """A row that joined with `joined_tokens` behind `iteration` gives all its pages back."""
        self._opening[(iteration + 1 - joined_tokens) % self._page] -= 1
        self.give_back(tokens)

    def grow(self, iteration: int) -> bool:
        """Takes the pages that rows open at this iteration, all or none."""
        return self._take(self._opening[iteration % self._page])

    def _take(self, pages: int) -> bool:
        if pages > self._free:
            return False
        self._free -= pages
        self._used += pages
        return True

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._page)
