"""Ways to divide the devices of a copy between encode and decode, and to fill either side with equal pipelines.

    pool -> copies -> devices that encode -> a side: replicas x stages x degree

Encode stands on the first devices of a copy, decode on the rest; groups of tensor ranks stay inside islands. A side
that would leave a device idle is left out: a split with fewer devices there is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from solver.facts.cluster import Level
from solver.plan.schedule import Role
from solver.search.placement.patterns import Load, MemoryNeed
from solver.search.placement.pools import Pool, replica_counts, share_pools
from solver.search.placement.waa_split import computation_share, fixed_split, memory_share
from solver.search.setting import Setting
from solver.search.uniform import Placed, placed_on
from solver.simulate.lengths import residents

# Copies of no more devices try every split; larger ones an even selection of so many.
_EVERY_SPLIT, _SELECTED = 16, 15


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a split.

    Attributes:
      kind: of its devices.
      groups: device ids of each stage, of the first replica.
      replicas: equal pipelines that it has.
    """

    kind: str
    role: Role
    groups: tuple[tuple[int, ...], ...]
    replicas: int

    def place(self, setting: Setting, copies: int) -> Placed:
        return placed_on(setting, list(self.groups), self.kind, self.role, copies)


@dataclasses.dataclass(frozen=True)
class Division:
    """One split of a copy's devices.

    Attributes:
      copies: of the whole.
      level: of the link that the sides hand over by: the farthest between any two of their devices.
      encode, decode: what each side may look like.
    """

    copies: int
    level: Level
    encode: tuple[Side, ...]
    decode: tuple[Side, ...]


def divisions(setting: Setting, policy: str) -> Iterator[Division]:
    """Every division that a policy tries; pools of other kinds stay idle.

    `waa-c` and `waa-m` try the splits that their rule gives for encode batches of 1, 2, 4 .., `waa` and
    `disaggregated` all of `split_counts`; only the last has several replicas of a side in one copy.
    """
    for pool in setting.pools:
        for copies in replica_counts([pool]):
            share = share_pools([pool], copies)[0][0]
            places = _Places(share)
            for count in _counts(setting, share, policy):
                spread = _Sides(setting, share.kind, setting.degrees(share), places, policy == "disaggregated")
                encode = tuple(spread.over("encode", 0, count))
                decode = tuple(spread.over("decode", count, share.devices))
                if encode and decode:
                    yield Division(copies, places.farthest, encode, decode)


def split_counts(devices: int, degrees: Sequence[int]) -> tuple[int, ...]:
    """Devices that encode, of `devices`: every multiple of the smallest degree in copies of up to 16 devices.

    Beyond, about 15 of them, evenly spaced, in multiples of the largest degree that leaves 16 multiples at least.
    """
    step = min(degrees)
    if devices <= _EVERY_SPLIT:
        return tuple(range(step, devices - step + 1, step))
    step = max((degree for degree in degrees if devices // degree >= _EVERY_SPLIT), default=step)
    most = devices // step - 1
    chosen = np.unique(np.round(np.linspace(1, most, min(most, _SELECTED))).astype(int))
    return tuple(int(count) * step for count in chosen)


def _counts(setting: Setting, share: Pool, policy: str) -> tuple[int, ...]:
    if share.devices < 2:
        return ()
    if policy in ("waa-c", "waa-m"):
        return tuple(sorted({_fixed(setting, share, policy, batch) for batch in _batches(setting)}))
    return split_counts(share.devices, setting.degrees(share))


def _batches(setting: Setting) -> Iterator[int]:
    """Powers of two whose rows, B_E E[D] by the paper's rule, the costs are tabulated for."""
    batch = 1
    yield batch
    while 2 * batch * max(setting.lengths.mean_decode, 1.0) <= setting.most_rows:
        batch *= 2
        yield batch


def _fixed(setting: Setting, share: Pool, policy: str, batch: int) -> int:
    """Devices that encode by the rule of WAA-C or WAA-M at one encode batch."""
    lengths, token = setting.lengths, setting.units[share.kind, min(setting.degrees(share))].cache_token_bytes
    rows = min(float(setting.most_rows), batch * max(lengths.mean_decode, 1.0))
    context = float(residents(lengths, 1).context[0])
    if policy == "waa-c":
        part = computation_share(
            setting.units, share.kind, Load("encode", batch), Load("decode", rows, context), lengths.mean_decode
        )
    else:
        needs: dict[Role, MemoryNeed] = {
            "encode": MemoryNeed(0.0, layer_bytes=2 * batch * lengths.mean_input * token),
            "decode": MemoryNeed(rows * context),
        }
        part = memory_share(setting.units, share.kind, setting.layers, needs)
    found = fixed_split([share], [part], {share.kind: setting.degrees(share)})
    return next(count for role, _, count in found if role == "encode")


class _Places:
    """The devices of a pool in order, with the island and host of each."""

    def __init__(self, pool: Pool) -> None:
        self.where = [
            (device, (h, i), h)
            for h, host in enumerate(pool.hosts)
            for i, island in enumerate(host)
            for device in island
        ]

    @property
    def farthest(self) -> Level:
        """Link between the first device and the last: no two are farther apart."""
        return _between(self.where[0], self.where[-1])

    def groups(self, first: int, end: int, tensor: int) -> list[tuple[int, ...]] | None:
        """Positions first .. end - 1 in groups inside islands; None where some would be left over."""
        found, at = [], first
        while at < end:
            if at + tensor > end or self.where[at][1] != self.where[at + tensor - 1][1]:
                return None
            found.append(tuple(range(at, at + tensor)))
            at += tensor
        return found

    def links(self, groups: list[tuple[int, ...]]) -> tuple[Level, ...]:
        """Between each group and the next, and from the last back to the first."""
        ends = zip(groups, groups[1:] + groups[:1], strict=True)
        return tuple(_between(self.where[a[0]], self.where[b[0]]) for a, b in ends)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sides:
    """How a part of a copy's devices may be filled."""

    setting: Setting
    kind: str
    degrees: Sequence[int]
    places: _Places
    replicated: bool

    def over(self, role: Role, first: int, end: int) -> Iterator[Side]:
        """Every number of replicas and degree that uses all devices, each replica over the same links."""
        for replicas in range(1, end - first + 1 if self.replicated else 2):
            size, left = divmod(end - first, replicas)
            for tensor in self.degrees:
                if not left and tensor <= size <= tensor * self.setting.layers:
                    groups = self._equal(range(first, end, size), size, tensor)
                    if groups is not None:
                        yield Side(self.kind, role, groups, replicas)

    def _equal(self, starts: range, size: int, tensor: int) -> tuple[tuple[int, ...], ...] | None:
        """Device ids of the first replica's stages; None where a replica does not go in, or has other links."""
        each = [self.places.groups(start, start + size, tensor) for start in starts]
        whole = [groups for groups in each if groups is not None]
        if len(whole) < len(each) or len({self.places.links(groups) for groups in whole}) > 1:
            return None
        return tuple(tuple(self.places.where[at][0] for at in group) for group in whole[0])


def _between(a: tuple[int, tuple[int, int], int], b: tuple[int, tuple[int, int], int]) -> Level:
    if a[2] != b[2]:
        return "pod"
    return "island" if a[1] == b[1] else "host"
