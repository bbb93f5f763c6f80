"""Cluster files: there and back, the presets, the first n devices against a list, one line for every fault."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from solver.facts import presets
from solver.facts.cluster import LEVELS, Cluster, DeviceKind, HostGroup, Link
from solver.facts.cluster_file import load_cluster, parse, take, to_text
from tests.solver.changed import with_field

ROOT = Path(__file__).parents[2]

# Preset: devices, kind, hosts.
PRESETS = {
    "paper-a40-48": (48, "a40-48g", 6),
    "paper-a100-16": (16, "a100-80g", 2),
    "dgx-a100": (8, "a100-80g", 1),
    "dgx-h100": (8, "h100-80g", 1),
    "dgx-h200": (8, "h200-141g", 1),
    "one-a100": (1, "a100-80g", 1),
    "one-h100": (1, "h100-80g", 1),
    "one-h200": (1, "h200-141g", 1),
    "one-rtx4090": (1, "rtx4090-24g", 1),
    "tpu-v5e-8": (8, "tpu-v5e", 1),
    "tpu-v6e-8": (8, "tpu-v6e", 1),
    "cpu": (1, "cpu", 1),
    "pod-1024-h100": (1024, "h100-80g", 128),
}

MIXED = Cluster(
    "mixed", "by hand",
    (DeviceKind("big", 10**9, 1e12, 1e14), DeviceKind("small", 10**8, 1e11, 1e13)),
    (HostGroup("big", 2, 2, 4), HostGroup("small", 3, 1, 2), HostGroup("big", 1, 1, 1)),
    Link(1e-6, 1e11, ((0.0, 1e-6), (1e6, 2e-5))), Link(2e-6, 1e10), Link(3e-5, 1e9),
)  # fmt: skip


def test_there_and_back() -> None:
    assert parse(to_text(MIXED), "c.json") == MIXED


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    cluster = load_cluster(name)
    devices = cluster.devices()
    count, kind, hosts = PRESETS[name]
    assert (len(devices), {device.kind for device in devices}) == (count, {kind})
    assert devices[-1].host + 1 == hosts
    assert cluster.name == name
    assert cluster.source
    assert cluster.island.transfer_s(2**24) <= cluster.host.transfer_s(2**24) < cluster.pod.transfer_s(2**24)
    readme = (presets.CONFIGS / "clusters" / "README.md").read_text()
    links = [
        f"{link.latency_s * 1e6:.0f} us, {link.bytes_per_s / 1e9:.3g} GB/s" for link in (cluster.island, cluster.pod)
    ]
    assert f"| {name} | {count} | {kind} | {' | '.join(links)} |" in readme


def test_preset_names_are_the_contracts_and_two_more() -> None:
    assert {path.stem for path in (presets.CONFIGS / "clusters").glob("*.json")} == set(PRESETS)


def test_presets_are_what_the_script_makes(shared_data: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "tools" / "make_clusters.py"
    arguments = [sys.executable, str(script), f"--data={shared_data}", f"--output={tmp_path}"]
    subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, timeout=120)
    for name in PRESETS:
        made, kept = (folder / f"{name}.json" for folder in (tmp_path, presets.CONFIGS / "clusters"))
        assert made.read_text() == kept.read_text(), name


@pytest.mark.parametrize("name", PRESETS)
def test_links_are_in_seconds_and_bytes(name: str) -> None:
    """A table in milliseconds, or in elements, would imply a bandwidth that no link has."""
    cluster = load_cluster(name)
    for level in LEVELS:
        link = cluster.link(level)
        assert 1e-6 <= link.latency_s <= 1e-3
        assert 1e8 <= link.bytes_per_s <= 1e12
        for size, seconds in link.table:
            assert size / seconds <= 1.3 * link.bytes_per_s
        if link.table:
            # Beyond the table it goes on without a jump and about as steeply.
            last = link.table[-1][0]
            assert link.transfer_s(2 * last) / link.transfer_s(last) == pytest.approx(2, rel=0.25)
            sizes = np.geomspace(1, 1e10, 50)
            assert (np.diff(link.transfer_s(sizes)) > -2e-5).all()


@pytest.mark.parametrize("cluster", [MIXED, load_cluster("paper-a40-48")], ids=["mixed", "preset"])
def test_take_is_the_head_of_the_list_of_devices(cluster: Cluster) -> None:
    devices = cluster.devices()
    for count in range(1, len(devices) + 1):
        try:
            taken = take(cluster, count)
        except ValueError as error:
            # Only a host with one whole and one cut island has no form.
            assert cluster is MIXED
            assert count < 16
            assert count % 8 > 4
            remedies = [int(word) for word in str(error).split() if word.isdigit()][-2:]
            assert [len(take(cluster, n).devices()) for n in remedies] == remedies
            continue
        assert taken.devices() == devices[:count]
        assert {kind.name for kind in taken.kinds} == {device.kind for device in devices[:count]}
        assert (taken.island, taken.host, taken.pod) == (cluster.island, cluster.host, cluster.pod)
        assert parse(to_text(taken), "c.json") == taken


@pytest.mark.parametrize("count", [0, -1, 23])
def test_take_refuses_other_counts(count: int) -> None:
    with pytest.raises(ValueError, match=f"devices: {count} of mixed, which has 23|devices: {count} of"):
        take(dataclasses.replace(MIXED, groups=MIXED.groups[:2]), count)


def test_virtual_devices_share_the_machine() -> None:
    one = load_cluster("cpu")
    four = load_cluster("cpu", 4)
    assert len(four.devices()) == 4
    assert {(device.island, device.host) for device in four.devices()} == {(0, 0)}
    assert four.kinds[0].memory_bytes * 4 == one.kinds[0].memory_bytes


def changed(path: str, value: object) -> str:
    """The file's text with one field changed; the value `...` removes it."""
    return with_field(to_text(MIXED), path, value)


FAULTS = [
    ("", "c.json: no valid JSON"),
    ("[]", r"c.json: \[\] is no object"),
    (to_text(MIXED)[:-30], "c.json: no valid JSON"),
    (changed("schema_version", 7), "c.json.schema_version: 7 is not 1"),
    (changed("pod", ...), "c.json.pod: missing"),
    (changed("rack", 1), "c.json.rack: unknown field"),
    (changed("groups", []), "c.json.groups: 0 devices; give 1 to"),
    (changed("groups.0.hosts", 0), r"c.json.groups\[0\].hosts: 0 is out of range"),
    (changed("groups.1.devices_per_island", -2), r"c.json.groups\[1\].devices_per_island: -2 is out of range"),
    (changed("groups.0.hosts", 99_999), "c.json.groups: 799999 devices; give 1 to"),
    (changed("groups.0.hosts", 1.5), r"c.json.groups\[0\].hosts: 1.5 is no int"),
    (changed("groups.0.kind", "huge"), r"c.json.groups\[0\].kind: 'huge' is unknown; kinds has big, small"),
    (changed("kinds.1.name", "big"), r"c.json.kinds\[0\].name: 'big' is empty or given twice"),
    (changed("kinds.1.name", ""), r"c.json.kinds\[1\].name: '' is empty or given twice"),
    (changed("kinds.1.name", "third"), r"c.json.groups\[1\].kind: 'small' is unknown"),
    (changed("kinds.0.memory_bytes", 0), r"c.json.kinds\[0\].memory_bytes: 0 is not positive"),
    (changed("kinds.0.memory_bytes", 1e9), r"c.json.kinds\[0\].memory_bytes: 1000000000.0 is no int"),
    (changed("kinds.0.flops_per_s", math.nan), "c.json: no valid JSON .NaN is no finite number"),
    (changed("groups", [{"kind": "big", "hosts": 1, "islands": 1, "devices_per_island": 1}]), "'small' has no device"),
    (changed("island.bytes_per_s", -1), "c.json.island.bytes_per_s: -1.0 is not positive"),
    (changed("pod.bytes_per_s", 0), "c.json.pod.bytes_per_s: 0.0 is not positive"),
    (changed("host.latency_s", -1e-6), "c.json.host.latency_s: -1e-06 is no time"),
    (changed("island.table", [[5, 1e-6], [5, 2e-6]]), r"c.json.island.table\[1\]: 5.0 bytes after 5.0"),
    (changed("island.table", [[-5, 1e-6]]), r"c.json.island.table\[0\]: -5.0 bytes after"),
    (changed("island.table", [[5, 0]]), r"c.json.island.table\[0\]: 0.0 is no time"),
    (changed("island.table", [[5]]), r"c.json.island.table\[0\]: 1 entries where 2 belong"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as failure:
        load_cluster(str(path))
    assert "\n" not in str(failure.value)
    assert str(path) in str(failure.value)


def test_unknown_names_list_the_presets() -> None:
    with pytest.raises(ValueError, match=r"dgx-x: no such file, and no preset of clusters; presets: cpu, dgx-a100"):
        load_cluster("dgx-x")
