"""Pages of a paged cache, counted without looking at single rows.

A row that joins after iteration g with p positions writes position p + i - g - 1 at iteration i, and opens a page where
that is a multiple of the page's size: at the iterations i = g + 1 - p (mod page). Rows are counted by that remainder.

Pages that fall free are taken again longest-free first. With `reuse` a row that was thrown out finds, when it comes
back, those of its pages that nobody took meanwhile (prefix caching): it gives them back from its end, so that what is
left is a prefix.
"""

from __future__ import annotations

import collections
import dataclasses
import math


@dataclasses.dataclass
class _Free:
    """Pages that fell free together, and the request whose prefix they hold, if it may come back."""

    request: int | None
    pages: int


class Pages:
    """Free pages, and how many more each coming iteration needs.

    Args:
      tokens: positions that the cache holds; inf: no limit.
      page: positions of a page.
      reuse: rows that were thrown out find what is left of their pages.
    """

    def __init__(self, tokens: float, page: int, reuse: bool = False) -> None:
        self._page, self._reuse = page, reuse
        self._free = math.inf if math.isinf(tokens) else int(tokens) // page
        self._used = 0
        self._opening = [0] * page
        # Free pages in the order in which they are taken.
        self._order: collections.deque[_Free] = collections.deque()
        if not math.isinf(tokens):
            self._order.append(_Free(None, int(tokens) // page))

    @property
    def used_tokens(self) -> int:
        """Positions in taken pages."""
        return self._used * self._page

    def take(self, tokens: int, request: int | None = None) -> int | None:
        """Takes the pages of so many positions, all or none.

        Args:
          tokens: positions of the row.
          request: that was thrown out before, or None.

        Returns:
          Positions whose keys and values are still there, or None where pages do not suffice.
        """
        needed = self._pages(tokens)
        if needed > self._free:
            return None
        # At least one token is computed, since its scores are wanted.
        left = 0 if request is None else self._find(request, (tokens - 1) // self._page)
        self._take(needed - left)
        return left * self._page

    def give_back(self, tokens: int, request: int | None = None) -> None:
        """Frees a row's pages; `request`: it was thrown out, and `tokens` of it may be found again."""
        pages = self._pages(tokens)
        self._free += pages
        self._used -= pages
        if math.isinf(self._free):
            return
        if request is None or not self._reuse:
            self._order.append(_Free(None, pages))
        else:
            self._order.append(_Free(None, pages - tokens // self._page))
            self._order.append(_Free(request, tokens // self._page))

    def join(self, iteration: int, tokens: int) -> None:
        """A row of so many positions grows by one at each iteration behind this one."""
        self._opening[(iteration + 1 - tokens) % self._page] += 1

    def leave(self, iteration: int, joined_tokens: int) -> None:
        """A row that joined with `joined_tokens` behind `iteration` grows no more."""
        self._opening[(iteration + 1 - joined_tokens) % self._page] -= 1

    def grow(self, iteration: int) -> bool:
        """Takes the pages that rows open at this iteration, all or none."""
        needed = self._opening[iteration % self._page]
        if needed > self._free:
            return False
        self._take(needed)
        return True

    def _take(self, pages: int) -> None:
        self._free -= pages
        self._used += pages
        if math.isinf(self._free):
            return
        while pages:
            entry = self._order[0]
            some = min(pages, entry.pages)
            entry.pages -= some
            pages -= some
            if not entry.pages:
                self._order.popleft()

    def _find(self, request: int, most: int) -> int:
        """Takes what is left of a thrown-out row's pages, at most `most`, and says how many."""
        for entry in self._order:
            if entry.request == request:
                found = min(entry.pages, most)
                entry.request = None
                entry.pages -= found
                self._free -= found
                self._used += found
                return found
        return 0

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._page)
