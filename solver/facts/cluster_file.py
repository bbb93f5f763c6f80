"""The file of a Cluster: strict, versioned JSON with the fields of `solver.facts.cluster`; and the first n devices.

Presets stand in `configs/clusters`, each number with its source. Whatever is wrong with a file is one line that names
file, field and value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path

from solver.facts import presets
from solver.facts.cluster import LEVELS, Cluster, DeviceKind, HostGroup, Link
from solver.plan import strict_json

SCHEMA_VERSION = 1
MOST_DEVICES = 100_000
STANDARD = "-"
# The one kind whose devices are virtual: they share the processor and memory of a single machine.
VIRTUAL_KIND = "cpu"


@dataclasses.dataclass(frozen=True)
class _ClusterFile:
    """The fields of `Cluster` in the order of the file."""

    schema_version: int
    name: str
    source: str
    kinds: tuple[DeviceKind, ...]
    groups: tuple[HostGroup, ...]
    island: Link
    host: Link
    pod: Link


def load_cluster(given: str, devices: int | None = None) -> Cluster:
    """The cluster that a flag names (a file, a preset, or `-` for standard input), or its first `devices`.

    Raises:
      ValueError: one line that names file, field and value.
    """
    if given == STANDARD:
        cluster = parse(sys.stdin.read(), "standard input")
    else:
        cluster = read_cluster(presets.find("clusters", given))
    return cluster if devices is None else take(cluster, devices)


def read_cluster(path: Path) -> Cluster:
    """Raises ValueError with one line that names file, field and value; OSError where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text; give a cluster file") from None
    return parse(text, str(path))


def parse(text: str, what: str) -> Cluster:
    """Reads `to_text`. Raises ValueError with one line that begins with `what`."""
    found = strict_json.from_json(_ClusterFile, text, what)
    if found.schema_version != SCHEMA_VERSION:
        raise ValueError(f"{what}.schema_version: {found.schema_version} is not {SCHEMA_VERSION}; write the file anew")
    cluster = Cluster(found.name, found.source, found.kinds, found.groups, found.island, found.host, found.pod)
    check_cluster(cluster, what)
    return cluster


def to_text(cluster: Cluster) -> str:
    """The file: one kind, group, link figure and table row a line."""
    record = dataclasses.asdict(cluster)
    lines = [f' "schema_version": {SCHEMA_VERSION}']
    for name, value in record.items():
        if name in ("kinds", "groups"):
            entries = ",\n".join("  " + json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f' "{name}": [\n{entries}\n ]')
        elif name in LEVELS:
            rows = ",\n".join("   " + json.dumps(row, allow_nan=False) for row in value["table"])
            table = f"[\n{rows}\n  ]" if rows else "[]"
            figures = f'"latency_s": {value["latency_s"]!r}, "bytes_per_s": {value["bytes_per_s"]!r}'
            lines.append(f' "{name}": {{\n  {figures},\n  "table": {table}\n }}')
        else:
            lines.append(f' "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def check_cluster(cluster: Cluster, what: str) -> None:
    """Raises ValueError with one line that begins with `what` and names field, value and remedy."""
    names = Counter(kind.name for kind in cluster.kinds)
    for i, kind in enumerate(cluster.kinds):
        where = f"{what}.kinds[{i}]"
        if not kind.name or names[kind.name] > 1:
            raise ValueError(f"{where}.name: {kind.name!r} is empty or given twice; name each kind once")
        for field in ("memory_bytes", "memory_bytes_per_s", "flops_per_s"):
            _check_positive(getattr(kind, field), f"{where}.{field}")
    for i, group in enumerate(cluster.groups):
        where = f"{what}.groups[{i}]"
        if group.kind not in names:
            raise ValueError(f"{where}.kind: {group.kind!r} is unknown; kinds has {', '.join(names) or 'none'}")
        for field in ("hosts", "islands", "devices_per_island"):
            if not 1 <= getattr(group, field) <= MOST_DEVICES:
                raise ValueError(f"{where}.{field}: {getattr(group, field)} is out of range; give at least 1")
    total = sum(group.devices for group in cluster.groups)
    if not 1 <= total <= MOST_DEVICES:
        raise ValueError(f"{what}.groups: {total} devices; give 1 to {MOST_DEVICES}")
    for kind in cluster.kinds:
        if not cluster.count(kind.name):
            raise ValueError(f"{what}.kinds: {kind.name!r} has no device in groups; add one or leave the kind out")
    for level in LEVELS:
        _check_link(cluster.link(level), f"{what}.{level}")


def _check_link(link: Link, where: str) -> None:
    if not (math.isfinite(link.latency_s) and link.latency_s >= 0):
        raise ValueError(f"{where}.latency_s: {link.latency_s} is no time; give 0 or more seconds")
    _check_positive(link.bytes_per_s, f"{where}.bytes_per_s")
    before = -1.0
    for i, (size, seconds) in enumerate(link.table):
        if not (math.isfinite(size) and size > before):
            raise ValueError(f"{where}.table[{i}]: {size} bytes after {before}; give sizes from 0 on, rising")
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"{where}.table[{i}]: {seconds} is no time; give seconds above 0")
        before = size


def _check_positive(value: float, where: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where}: {value} is not positive; give a finite figure above 0")


def take(cluster: Cluster, devices: int) -> Cluster:
    """The first `devices` of a cluster; a host or an island may be cut.

    A cluster of kind "cpu" alone gives any number instead: virtual devices that share its one machine and its memory.

    Raises:
      ValueError: fewer than 1, more than there are, or a host that would be left with islands of different size.
    """
    total = len(cluster.devices())
    virtual = [kind.name for kind in cluster.kinds] == [VIRTUAL_KIND]
    if not 1 <= devices <= (MOST_DEVICES if virtual else total):
        raise ValueError(f"devices: {devices} of {cluster.name}, which has {total}; give 1 to {total}")
    if devices == total:
        return cluster
    name = f"{cluster.name}[:{devices}]"
    if virtual:
        kind = cluster.kinds[0]
        shared = dataclasses.replace(kind, memory_bytes=kind.memory_bytes * total // devices)
        return dataclasses.replace(cluster, name=name, kinds=(shared,), groups=(HostGroup(kind.name, 1, 1, devices),))
    groups: list[HostGroup] = []
    left = devices
    for group in cluster.groups:
        groups += _first(group, left)
        left -= min(left, group.devices)
    kinds = tuple(kind for kind in cluster.kinds if any(group.kind == kind.name for group in groups))
    return dataclasses.replace(cluster, name=name, kinds=kinds, groups=tuple(groups))


def _first(group: HostGroup, devices: int) -> list[HostGroup]:
    """At most two groups: whole hosts, and the host that is cut."""
    if devices >= group.devices:
        return [group]
    per_host = group.islands * group.devices_per_island
    hosts, rest = divmod(devices, per_host)
    found = [dataclasses.replace(group, hosts=hosts)] if hosts else []
    islands, single = divmod(rest, group.devices_per_island)
    if islands and single:
        raise ValueError(
            f"devices: {devices} would leave a host with {islands} whole islands and one of {single}; "
            f"give {devices - single} or {devices - single + group.devices_per_island}"
        )
    if rest:
        found.append(HostGroup(group.kind, 1, max(islands, 1), single or group.devices_per_island))
    return found
