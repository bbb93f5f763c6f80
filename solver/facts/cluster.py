"""The devices at hand: a tree island < host < pod, with a device kind per host and a link per level.

Tensor parallelism stays inside an island. A hand-over between stages uses the link of the lowest level that holds both
stages. Devices are numbered island by island, host by host, in the order of the file.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from solver.facts.workload import Floats

Level = Literal["island", "host", "pod"]
LEVELS: tuple[Level, ...] = ("island", "host", "pod")


@dataclasses.dataclass(frozen=True)
class Link:
    """How long bytes take from one device to another.

    Attributes:
      latency_s: of an empty message.
      bytes_per_s: in one direction; used where no table is given and beyond its last row.
      table: measured (bytes, seconds) rows, rising; may be empty.
    """

    latency_s: float
    bytes_per_s: float
    table: tuple[tuple[float, float], ...] = ()

    def transfer_s(self, size_bytes: Floats | float) -> Floats:
        """Seconds for messages of these sizes."""
        size = np.asarray(size_bytes, np.float64)
        straight = self.latency_s + size / self.bytes_per_s
        if not self.table:
            return straight
        sizes, seconds = np.array(self.table).T
        beyond = seconds[-1] + (size - sizes[-1]) / self.bytes_per_s
        return np.where(size > sizes[-1], beyond, np.interp(size, sizes, seconds))


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """One kind of device.

    Attributes:
      name: "a100-80g"; profiles name the kind they were measured on.
      memory_bytes: of one device.
      memory_bytes_per_s, flops_per_s: peak figures (dense bfloat16), for roofline estimates that are marked as such.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float


@dataclasses.dataclass(frozen=True)
class HostGroup:
    """Hosts that are alike: `hosts` x `islands` x `devices_per_island` devices of one kind."""

    kind: str
    hosts: int
    islands: int
    devices_per_island: int

    @property
    def devices(self) -> int:
        return self.hosts * self.islands * self.devices_per_island


@dataclasses.dataclass(frozen=True)
class Device:
    """One device: its id, its kind, and the island and host it stands in (numbered over the whole cluster)."""

    id: int
    kind: str
    island: int
    host: int


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster.

    Attributes:
      name, source: for people.
      kinds: every kind that `groups` name.
      groups: hosts, in device order.
      island, host, pod: links between devices of one island, of one host, of different hosts.
    """

    name: str
    source: str
    kinds: tuple[DeviceKind, ...]
    groups: tuple[HostGroup, ...]
    island: Link
    host: Link
    pod: Link

    def kind(self, name: str) -> DeviceKind:
        return next(kind for kind in self.kinds if kind.name == name)

    def link(self, level: Level) -> Link:
        return {"island": self.island, "host": self.host, "pod": self.pod}[level]

    def devices(self) -> tuple[Device, ...]:
        """Every device, in order."""
        return self._devices

    @functools.cached_property
    def _devices(self) -> tuple[Device, ...]:
        found: list[Device] = []
        island = host = 0
        for group in self.groups:
            for _ in range(group.hosts):
                for _ in range(group.islands):
                    found += [Device(len(found) + i, group.kind, island, host) for i in range(group.devices_per_island)]
                    island += 1
                host += 1
        return tuple(found)

    def count(self, kind: str) -> int:
        return sum(group.devices for group in self.groups if group.kind == kind)
