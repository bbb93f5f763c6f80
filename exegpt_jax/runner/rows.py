"""The Runner's bookkeeping of rows: which request sits in which slot of the cache, and how far it has come."""

from __future__ import annotations

import heapq

from exegpt_jax.runner.request import Request


class Row:
    """One request from its submission to its last event. The Runner alone changes it.

    Attributes:
      number: the Runner's own, unique for good.
      request: what was asked.
      arrival_s, encode_start_s, first_token_s, last_token_s: its moments so far; 0 where not yet.
      encoded: prompt tokens (and resumed output) already sent to encode.
      generated: output tokens so far, resumed ones included.
      slot: None until its prompt is wholly encoded.
    """

    def __init__(self, number: int, request: Request, arrival_s: float) -> None:
        self.number = number
        self.request = request
        self.arrival_s = arrival_s
        self.encode_start_s = self.first_token_s = self.last_token_s = 0.0
        self.encoded = 0
        self.generated = len(request.generated_ids)
        self.slot: int | None = None

    @property
    def source_ids(self) -> tuple[int, ...]:
        """What encode reads: the prompt, and behind it the output of an earlier run."""
        return self.request.prompt_ids + self.request.generated_ids

    @property
    def cached_tokens(self) -> int:
        """Positions in the cache once its prompt is encoded: the newest token is written by the next iteration."""
        return len(self.request.prompt_ids) + self.generated - 1

    @property
    def remaining_tokens(self) -> int:
        return self.request.sampling.max_tokens - self.generated


class Slots:
    """Rows by slot. New rows take the lowest free slot, so that decode reads as few as it can."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows: dict[int, Row] = {}
        self._free = list(range(max_rows))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def highest(self) -> int:
        """One more than the highest slot in use."""
        return max(self.rows) + 1 if self.rows else 0

    def take(self, row: Row) -> int:
        slot = heapq.heappop(self._free)
        self.rows[slot] = row
        row.slot = slot
        return slot

    def give_back(self, slot: int) -> None:
        self.rows.pop(slot).slot = None
        heapq.heappush(self._free, slot)

    def resized(self, max_rows: int) -> Slots:
        """The same rows in the same slots, of which there are other ones behind them; all lie below `max_rows`."""
        other = Slots(max_rows)
        other.rows = dict(self.rows)
        other._free = [slot for slot in range(max_rows) if slot not in other.rows]
        return other

    def compact(self, limit: int) -> tuple[tuple[int, int], ...]:
        """Moves every row at or above `limit` to a free slot below it, of which there are enough: (from, to) pairs."""
        moves = []
        for source in sorted(slot for slot in self.rows if slot >= limit):
            row = self.rows.pop(source)
            target = self.take(row)
            heapq.heappush(self._free, source)
            moves.append((source, target))
        return tuple(moves)
