"""Placements of one mould: R copies, each a pipeline of equal tensor degree that uses every device of its share.

They are few, so each is searched over (B_E, N_D) to its proven optimum. The best of them is where the placement solver
starts, and the whole answer where a cluster leaves no other choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from solver.plan.schedule import Role, StageSpec
from solver.search.placement.layout import level_between
from solver.search.placement.pools import Pool, replica_counts, share_pools
from solver.search.setting import Setting
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.from_plan import TOKEN_BYTES


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """One copy of a pipeline on devices.

    Attributes:
      copies: how many there are of it.
      stages: of the first copy.
      pipeline: their costs.
      kinds: device kind of each stage.
      encode_replicas, decode_replicas: pipelines of either side in a copy, where encode and decode run apart.
    """

    copies: int
    stages: tuple[StageSpec, ...]
    pipeline: Pipeline
    kinds: tuple[str, ...]
    encode_replicas: int = 1
    decode_replicas: int = 1

    @property
    def most_tensor(self) -> int:
        return max(stage.tensor for stage in self.stages)

    def usable_bytes(self, setting: Setting) -> tuple[float, ...]:
        """Of a device of each stage."""
        return tuple(setting.usable_bytes(kind) for kind in self.kinds)

    def micro_batches(self) -> tuple[int, ...]:
        return micro_batch_counts(len(self.stages))


def micro_batch_counts(stages: int) -> tuple[int, ...]:
    """Counts of micro-batches that are tried: one, and the powers of two from half to twice the stages."""
    powers = (2**power for power in range(2 + stages.bit_length()))
    return tuple(m for m in powers if m == 1 or (stages > 1 and stages <= 2 * m <= 4 * stages))


def uniform_placements(setting: Setting, role: Role = "both") -> Iterator[Placed]:
    """Every number of copies and every degree, all devices of one pool used; pools of other kinds stay idle."""
    for pool in setting.pools:
        for copies in replica_counts([pool]):
            share = share_pools([pool], copies)[0][0]
            for tensor in setting.degrees(pool):
                placed = place(setting, share, tensor, role, copies)
                if placed is not None:
                    yield placed


def place(setting: Setting, pool: Pool, tensor: int, role: Role, copies: int = 1) -> Placed | None:
    """Equal stages on groups of `tensor` devices, in device order; None where the pool's islands do not allow it."""
    groups = [
        island[first : first + tensor]
        for host in pool.hosts
        for island in host
        for first in range(0, len(island) - tensor + 1, tensor)
    ][: setting.most_stages]
    if not groups or tensor > pool.island_size:
        return None
    return placed_on(setting, [tuple(group) for group in groups], pool.kind, role, copies)


def placed_on(setting: Setting, groups: list[tuple[int, ...]], kind: str, role: Role, copies: int = 1) -> Placed:
    """Equal stages on the given groups of devices of one kind."""
    stages, placed = [], []
    layer = 0
    for index, count in enumerate(_shares(setting.layers, len(groups))):
        last = index == len(groups) - 1
        stages.append(StageSpec(role, (layer, layer + count), groups[index], len(groups[index])))
        link = None if last else level_between(setting.cluster, groups[index], groups[index + 1])
        placed.append(PlacedStage(setting.units[kind, len(groups[index])], count, index == 0, last, link))
        layer += count
    return Placed(copies, tuple(stages), Pipeline(tuple(placed), return_s(setting, groups)), (kind,) * len(stages))


def again(setting: Setting, placed: Placed) -> Placed:
    """The same stages on the costs of another setting (another workload)."""
    stages = tuple(
        dataclasses.replace(stage, unit=setting.units[stage.unit.kind, stage.unit.tensor])
        for stage in placed.pipeline.stages
    )
    return dataclasses.replace(placed, pipeline=Pipeline(stages, placed.pipeline.return_s))


def return_s(setting: Setting, groups: list[tuple[int, ...]]) -> float:
    """Sampled tokens from the last stage back to the first."""
    if len(groups) == 1:
        return 0.0
    back = setting.cluster.link(level_between(setting.cluster, groups[-1], groups[0]))
    return float(back.transfer_s(TOKEN_BYTES))


def _shares(layers: int, stages: int) -> list[int]:
    """Layers per stage; the first and the last, which have ends to carry, are the last to get one more."""
    base, more = divmod(layers, stages)
    order = sorted(range(stages), key=lambda index: (index in (0, stages - 1), index))
    extra = set(order[:more])
    return [base + (index in extra) for index in range(stages)]
