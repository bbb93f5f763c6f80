"""Devices that are alike, as the placement sees them: pools of equal islands in equal hosts, and their equal shares.

Tensor groups stay inside an island. Where each offered degree divides the next and the largest divides the island, any
multiset of groups whose devices add up to the islands' fits into them (fill by falling degree), so a placement needs to
count devices, not to name them. A cluster that is not of one mould becomes several pools, each of which is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from solver.facts.cluster import Cluster

Island = tuple[int, ...]
Host = tuple[Island, ...]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Hosts of one kind and one shape.

    Attributes:
      kind: of every device.
      hosts: device ids, [host][island][device]; every host has as many islands, every island as many devices.
    """

    kind: str
    hosts: tuple[Host, ...]

    @property
    def island_size(self) -> int:
        return len(self.hosts[0][0])

    @property
    def host_islands(self) -> int:
        return len(self.hosts[0])

    @property
    def islands(self) -> int:
        return len(self.hosts) * self.host_islands

    @property
    def devices(self) -> int:
        return self.islands * self.island_size

    @property
    def shape(self) -> tuple[str, int, int, int]:
        return (self.kind, len(self.hosts), self.host_islands, self.island_size)


def pools_of(cluster: Cluster) -> tuple[Pool, ...]:
    """The pools of a cluster, in device order of their first hosts."""
    hosts: dict[tuple[str, int, int], list[Host]] = {}
    ids = itertools.count()
    for group in cluster.groups:
        found = hosts.setdefault((group.kind, group.islands, group.devices_per_island), [])
        for _ in range(group.hosts):
            found.append(tuple(tuple(itertools.islice(ids, group.devices_per_island)) for _ in range(group.islands)))
    return tuple(Pool(kind, tuple(each)) for (kind, _, _), each in hosts.items() if each)


def check_degrees(pool: Pool, degrees: Sequence[int]) -> None:
    """Raises ValueError unless groups of these degrees always pack: each divides the next, the last the island."""
    chain = [*sorted(degrees), pool.island_size]
    for small, large in itertools.pairwise(chain):
        if small < 1 or large % small:
            raise ValueError(
                f"tensor: degrees {sorted(degrees)} do not pack into islands of {pool.island_size} {pool.kind} "
                f"({small} does not divide {large}); offer degrees of which each divides the next"
            )


def replica_counts(pools: Sequence[Pool]) -> Iterator[int]:
    """Every number of identical copies that the pools divide into, rising."""
    most = min(pool.devices for pool in pools)
    return (copies for copies in range(1, most + 1) if all(_splits(pool, copies) for pool in pools))


def share_pools(pools: Sequence[Pool], copies: int) -> tuple[tuple[Pool, ...], ...]:
    """The pools of each of `copies` replicas, all of the same shapes: [copies][pools].

    A replica has whole hosts where it can, whole islands of a shared host next, an aligned part of an island last.
    Hosts that are left over are shared by equal numbers of replicas.

    Raises:
      ValueError: the pools do not divide into so many equal shares.
    """
    shares: list[list[Pool]] = [[] for _ in range(copies)]
    for pool in pools:
        if not _splits(pool, copies):
            raise ValueError(
                f"replicas: {pool.devices} {pool.kind} do not divide into {copies} equal shares; "
                f"give one of {', '.join(map(str, replica_counts(pools)))}"
            )
        whole, left = divmod(len(pool.hosts), copies)
        for copy, share in enumerate(shares):
            if whole:
                share.append(Pool(pool.kind, pool.hosts[copy * whole : (copy + 1) * whole]))
            if left:
                host, part = divmod(copy, copies // left)
                share.append(Pool(pool.kind, (_part(pool.hosts[copies * whole + host], part, copies // left),)))
    return tuple(tuple(share) for share in shares)


def _splits(pool: Pool, copies: int) -> bool:
    left = len(pool.hosts) % copies
    if not left:
        return True
    if copies % left:
        return False
    parts = copies // left
    return pool.host_islands % parts == 0 or (
        parts % pool.host_islands == 0 and pool.island_size % (parts // pool.host_islands) == 0
    )


def _part(host: Host, part: int, parts: int) -> Host:
    """One of `parts` equal parts of a host."""
    if len(host) % parts == 0:
        size = len(host) // parts
        return host[part * size : (part + 1) * size]
    island, piece = divmod(part, parts // len(host))
    size = len(host[0]) // (parts // len(host))
    return (host[island][piece * size : (piece + 1) * size],)
