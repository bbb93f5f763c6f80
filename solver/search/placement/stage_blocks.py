"""Stages in blocks: which stand in one island, in what order, and which islands in one host.

The stages of one island that follow one another are a block. It ends in its anchor, the stage charged with a farther
link (or the last stage); the others are dealt to blocks with room by falling degree. Blocks of one host follow one
another; first and last stage stand at the ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from solver.search.placement.placement_problem import Pattern
from solver.search.placement.pools import Pool


@dataclasses.dataclass(eq=False)
class Block:
    """Stages of one island in order; `free` devices are left."""

    pool: int
    stages: list[Pattern]
    free: int


def host_blocks(pools: Sequence[Pool], chosen: list[Pattern]) -> list[list[Block]]:
    """Blocks of islands, by host and in order."""
    first = next((p for p in chosen if p.position in ("first", "both")), None)
    last = next((p for p in chosen if p.position in ("last", "both")), None)
    if first is None or last is None:
        raise ValueError("placement: counts lack a first or a last stage; they are of another problem")
    if first is last:
        return [[Block(first.pool, [first], 0)]]
    middle = [p for p in chosen if p.position == "middle"]
    anchors = sorted((p for p in middle if p.link != "island"), key=lambda p: (p.tensor, p.link or "", p.layers))
    inner = sorted((p for p in middle if p.link == "island"), key=lambda p: (-p.tensor, p.layers))
    found: list[list[list[Block]]] = []
    for beside in _openings(pools, first, anchors, last):
        blocks = [Block(p.pool, [p], pools[p.pool].island_size - p.tensor) for p in [*anchors, last]]
        if beside is None:
            blocks.insert(0, Block(first.pool, [first], 0))
        else:
            opening = blocks.pop(beside)
            opening.stages.insert(0, first)
            opening.free -= first.tensor
            blocks.insert(0, opening)
        missed = _deal(pools, inner, blocks)
        hosts, parted = _by_host(pools, blocks)
        if not missed and not parted:
            return hosts
        found.append(hosts)
    return found[0]


def _openings(pools: Sequence[Pool], first: Pattern, anchors: list[Pattern], last: Pattern) -> list[int | None]:
    """Which anchor (last stage: behind them all) the first stage may share its block with; None: it stands alone."""
    if first.link != "island":
        return [None]
    size = pools[first.pool].island_size
    rivals = anchors or [last]
    found: dict[tuple[object, ...], int] = {}
    for index, anchor in enumerate(rivals):
        if anchor.pool == first.pool and anchor.tensor + first.tensor <= size:
            found.setdefault((anchor.tensor, anchor.link), index)
    return [*found.values()] or [None]


def _deal(pools: Sequence[Pool], inner: list[Pattern], blocks: list[Block]) -> bool:
    """Inner stages, by falling degree, into blocks that hold them; tells whether some needed an island of their own."""
    missed = False
    for pattern in inner:
        block = next((b for b in blocks if b.pool == pattern.pool and b.free >= pattern.tensor), None)
        if block is None:
            missed = True
            block = Block(pattern.pool, [], pools[pattern.pool].island_size)
            blocks.insert(1, block)
        # Behind the first stage, if it stands here; before the anchor, if there is one.
        block.stages.insert(1 if block.stages and block.stages[0].position == "first" else 0, pattern)
        block.free -= pattern.tensor
    return missed


def _by_host(pools: Sequence[Pool], blocks: list[Block]) -> tuple[list[list[Block]], bool]:
    """Blocks by host, in order; tells whether one that hands over inside its host found none to do so.

    Before a block by which a host is left go blocks that hand over inside the host, as many as it has islands.
    """
    opening, final = blocks[0], blocks[-1]
    near = [b for b in blocks if b is not final and b.stages[-1].link == "host"]
    hosts = [[b] for b in blocks if not any(b is each for each in near)]
    parted = False
    for block in near:
        islands = pools[block.pool].host_islands
        # The first block's host is left where it can be, so that all between first and last host is reached once.
        rooms = [
            h
            for h in hosts
            if h[-1].pool == block.pool and len(h) < islands and (h[-1] is not opening or h[-1] is final)
        ]
        if rooms:
            rooms[0].insert(0, block)
        else:
            parted = True
            hosts.insert(0, [block])
    # A host's first block is the opening one, its last the one by which it is left.
    hosts = [[*(b for b in h[:-1] if b is opening), *(b for b in h[:-1] if b is not opening), h[-1]] for h in hosts]
    hosts.sort(key=lambda h: any(b is final for b in h) - any(b is opening for b in h))
    return hosts, parted
