"""Who is next: keys share the engine by tokens, a key's own requests go by priority.

Between keys: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). A key has a tag, the tokens that it has
been given so far; the key with the smallest tag is next; who comes back begins at the tag of who went last, so that
idling saves nothing up. While two keys wait, what they are given differs by at most one request of each.

Within a key: lower priority values first, as vLLM has it, and the earlier of equals. Every eighth goes to the key's
oldest, so whoever has n older ones before it is overtaken by at most 7 (n + 1) younger.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Generic, TypeVar

OLDEST_EVERY = 8

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class _Entry(Generic[_Item]):
    item: _Item
    key: str | None
    priority: int
    cost: int
    order: int


class _Flow(Generic[_Item]):
    """What one key has waiting, by priority, each in order of arrival."""

    def __init__(self, tag: float) -> None:
        self.tag = tag
        self.levels: dict[int, collections.OrderedDict[str, _Entry[_Item]]] = {}
        self._costs: collections.Counter[int] = collections.Counter()
        self.count = self.cost = 0
        self._turn = 0

    def add(self, name: str, entry: _Entry[_Item]) -> None:
        self.levels.setdefault(entry.priority, collections.OrderedDict())[name] = entry
        self._costs[entry.priority] += entry.cost
        self.count, self.cost = self.count + 1, self.cost + entry.cost

    def remove(self, name: str, priority: int) -> _Entry[_Item]:
        level = self.levels[priority]
        entry = level.pop(name)
        self._costs[priority] -= entry.cost
        if not level:
            del self.levels[priority], self._costs[priority]
        self.count, self.cost = self.count - 1, self.cost - entry.cost
        return entry

    def next(self) -> tuple[str, _Entry[_Item]]:
        """Takes none away. Counts turns, so it is asked once for each that goes."""
        self._turn = (self._turn + 1) % OLDEST_EVERY
        if self._turn == 0:
            return min((_first(level) for level in self.levels.values()), key=lambda first: first[1].order)
        return _first(self.levels[min(self.levels)])

    def ahead(self, priority: int) -> tuple[int, int]:
        """Requests and cost that go before another one of this priority, the turns of the oldest aside."""
        before = [level for level in self.levels if level <= priority]
        return sum(len(self.levels[level]) for level in before), sum(self._costs[level] for level in before)


class FairQueue(Generic[_Item]):
    """Items by name. Small and passive: nobody waits in it."""

    def __init__(self) -> None:
        self._flows: dict[str | None, _Flow[_Item]] = {}
        # Of keys without anything waiting, as far as their tags are ahead of the time.
        self._tags: dict[str | None, float] = {}
        self._where: dict[str, tuple[str | None, int]] = {}
        self._time = 0.0
        self._order = 0

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[_Item]:
        """Whoever waits, in no order."""
        for flow in self._flows.values():
            for level in flow.levels.values():
                for entry in level.values():
                    yield entry.item

    def push(self, name: str, item: _Item, *, key: str | None, priority: int, cost: int) -> None:
        """`cost` is at least 1."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(max(self._time, self._tags.pop(key, 0.0)))
        flow.add(name, _Entry(item, key, priority, cost, self._order))
        self._where[name] = key, priority
        self._order += 1

    def pop(self) -> _Item:
        """Whoever is next; somebody must be waiting."""
        flow = min(self._flows.values(), key=lambda each: each.tag)
        name, entry = flow.next()
        self._time = flow.tag
        flow.tag += entry.cost
        self._take(name)
        return entry.item

    def remove(self, name: str) -> _Item | None:
        """Whoever does not wait any more costs its key nothing. None if it did not."""
        return self._take(name).item if name in self._where else None

    def settle(self, key: str | None, more: int) -> None:
        """What was given to a key came to so much more than it was taken for, or less."""
        if key in self._flows:
            self._flows[key].tag += more
        else:
            self._keep_tag(key, self._tags.get(key, self._time) + more)

    def cost_of(self, key: str | None) -> int:
        """Of all that the key has waiting."""
        return self._flows[key].cost if key in self._flows else 0

    def ahead_of(self, key: str | None, priority: int) -> int:
        """How many would go before another one that comes now, if nobody came after it.

        Exact within a key, but for the turns of its oldest; other keys are counted by their mean cost.
        """
        own_flow = self._flows.get(key)
        tag, count = (max(self._time, self._tags.get(key, 0.0)), 0) if own_flow is None else (own_flow.tag, 0)
        if own_flow is not None:
            count, cost = own_flow.ahead(priority)
            tag += cost
        for other, flow in self._flows.items():
            if other != key and tag > flow.tag:
                count += min(flow.count, -int((flow.tag - tag) * flow.count // flow.cost))
            elif other != key and tag == flow.tag:
                # It has waited longer, and the first of equals goes first.
                count += 1
        return count

    def _take(self, name: str) -> _Entry[_Item]:
        key, priority = self._where.pop(name)
        flow = self._flows[key]
        entry = flow.remove(name, priority)
        if not flow.count:
            del self._flows[key]
            self._keep_tag(key, flow.tag)
        return entry

    def _keep_tag(self, key: str | None, tag: float) -> None:
        self._tags[key] = tag
        self._tags = {each: kept for each, kept in self._tags.items() if kept > self._time}


def _first(level: collections.OrderedDict[str, _Entry[_Item]]) -> tuple[str, _Entry[_Item]]:
    return next(iter(level.items()))
