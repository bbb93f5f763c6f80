"""Floors of pipelines whose stages are all of one degree, however the layers are divided among them.

The path takes all layers, both ends and every hand-over. Of n stages the last has k layers and the head, the slowest of
the others at least (L - k) / (n - 1) in whole layers and a hand-over; the first, with the embedding, likewise. Whatever
k is, the slowest stage takes no less than the least over k of the larger of the two. What an iteration and the drain
behind a phase take together does not fall as the slowest stage gets slower, so both may be taken at that least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from solver.facts.cluster import LEVELS
from solver.facts.workload import Floats
from solver.search.family import Family
from solver.search.proof.floors import Floors, MemoryFloor, below_maximum, spread
from solver.search.setting import Setting
from solver.simulate.costs import UnitCosts
from solver.simulate.from_plan import TOKEN_BYTES


def alike_floors(setting: Setting, unit: UnitCosts, family: Family, memory: MemoryFloor) -> Floors:
    """Of a family whose one degree is the unit's and whose number of stages is known."""
    layers, stages = setting.layers, family.stages[0]
    m_e, m_d = family.encode_micro_batches, family.decode_micro_batches
    rows = np.arange(setting.most_rows + 1) / m_e
    layer, embed, head, hop = (
        at_rows(table, rows)
        for table in (unit.encode_s, unit.embed_encode_s, unit.head_encode_s, _least(unit.hand_over_encode_s.values()))
    )
    path = layers * layer + embed + head + (stages - 1) * hop
    slowest = _slowest(layers, stages, layer[None], embed[None], head[None], hop[None], lambda t: t.max(axis=0))[0]
    encode_s = path + (m_e - 1) * slowest

    reach = -(-setting.most_rows // m_d) + 1
    layer, embed, head, hop = (
        np.broadcast_to(table, unit.decode_s.shape)[:, :reach]
        for table in (unit.decode_s, unit.embed_decode_s, unit.head_decode_s, _least(unit.hand_over_decode_s.values()))
    )
    path = layers * layer + embed + head + (stages - 1) * hop
    slowest = _slowest(layers, stages, layer, embed, head, hop, below_maximum)
    back_s = min(float(setting.cluster.link(level).transfer_s(TOKEN_BYTES)) for level in LEVELS) * (stages > 1)
    decode = below_maximum(np.stack([m_d * slowest, path + back_s * (np.arange(path.shape[1]) > 0)]))
    drain = np.maximum(0.0, np.minimum(path - slowest, (m_d - 1) * slowest)) + unit.phase_s
    return Floors(encode_s, unit.contexts, spread(decode, m_d), spread(drain, m_d), memory)


def _slowest(
    layers: int,
    stages: int,
    layer: Floats,
    embed: Floats,
    head: Floats,
    hop: Floats,
    larger: Callable[[Floats], Floats],
) -> Floats:
    """What the slowest stage takes at least; `larger` of tables [choices, contexts, r] holds between their entries."""
    if stages == 1:
        return layers * layer + embed + head
    found = []
    for own, others in ((head, hop), (embed + hop, 0.0 * hop)):
        least = np.full_like(layer, np.inf)
        for k in range(1, layers - stages + 2):
            alone = k * layer + own
            if (alone >= least).all():
                break
            rest = -(-(layers - k) // (stages - 1)) * layer + others
            least = np.minimum(least, larger(np.stack([alone, rest])))
        found.append(least)
    return larger(np.stack(found))


def _least(tables: Iterable[Floats]) -> Floats:
    return np.minimum.reduce(list(tables))


def at_rows(table: Floats, rows: Floats) -> Floats:
    """Entries of a table [r] at fractional rows, straight lines between."""
    below = np.minimum(rows.astype(np.int64), len(table) - 2)
    part = rows - below
    return table[below] * (1 - part) + table[below + 1] * part
