"""Writes the cluster presets of `configs/clusters`, links from the measured tables in `../shared/data`.

Tables there are in milliseconds and bytes (vidur) or elements (aiconfigurator); here seconds and bytes. The same input
gives the same bytes.

Usage: python tests/tools/make_clusters.py [--data=../shared/data] [--output=configs/clusters]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from solver.facts.cluster import Cluster, DeviceKind, HostGroup, Link
from solver.facts.cluster_file import check_cluster, to_text

ROOT = Path(__file__).parents[2]
GIB = 2**30

# Memory, memory bandwidth and dense bfloat16 peak; sources in configs/clusters/README.md.
KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind("a40-48g", 46_068 * 2**20, 696e9, 149.7e12),
        DeviceKind("a100-80g", 80 * GIB, 2039e9, 312e12),
        DeviceKind("h100-80g", 80 * GIB, 3350e9, 989e12),
        DeviceKind("h200-141g", 141 * GIB, 4800e9, 989e12),
        DeviceKind("rtx4090-24g", 24_564 * 2**20, 1008e9, 165.2e12),
        DeviceKind("tpu-v5e", 16 * GIB, 819e9, 197e12),
        DeviceKind("tpu-v6e", 32 * GIB, 1638e9, 918e12),
        DeviceKind("cpu", 4 * GIB, 20e9, 100e9),
    )
}
NETWORK = "vidur/data/profiling/network"
VIDUR = "https://github.com/microsoft/vidur (MIT, (c) Microsoft Corporation)"
AICONFIGURATOR = "https://github.com/ai-dynamo/aiconfigurator (Apache-2.0, (c) NVIDIA CORPORATION & AFFILIATES)"
TPU_DOCS = "https://cloud.google.com/tpu/docs (public figures)"

CPU_SOURCE = (
    "whatever machine runs this: modest figures, so that a plan for it fits a small one; times come from a profile of"
    " the machine, no roofline estimate should rest on these"
)


def rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") as stream:
        yield from csv.DictReader(stream)


def measured(times_ms: dict[float, list[float]], most_rows: int = 20) -> Link:
    """A link from medians by size in bytes: sizes about a factor apart, the slope of the largest beyond them."""
    sizes = sorted(times_ms)
    factor = (sizes[-1] / max(sizes[0], 1024)) ** (1 / (most_rows - 1))
    chosen = [sizes[0]]
    chosen += [size for size in sizes[1:] if size >= 1024]
    table: list[tuple[float, float]] = []
    for size in chosen:
        if not table or size >= table[-1][0] * factor or size == sizes[-1]:
            table.append((size, round(statistics.median(times_ms[size]) / 1e3, 9)))
    # From a quarter of the largest size on, all sizes together, so that no single measurement sets the slope.
    large = [(size, statistics.median(times_ms[size]) / 1e3) for size in sizes if size >= sizes[-1] / 4]
    slope = statistics.linear_regression(*zip(*large, strict=True)).slope
    return Link(table[0][1], float(f"{1 / slope:.4g}"), tuple(table))


def send_recv(data: Path, topology: str, devices_per_node: int) -> Link:
    """Vidur's pairs: two devices of one host (2) or one device on each of two hosts (1)."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows(data / NETWORK / topology / "send_recv.csv.gz"):
        if int(row["devices_per_node"]) == devices_per_node and row["num_workers"] == "2":
            found[float(row["size"])].append(float(row["time_stats.send_recv.median"]))
    return measured(found)


def between_hosts_2023(data: Path, kind: str) -> Link:
    """Vidur's older tables, of hosts whose links fit the kind: 2-byte activations of `num_tokens` x `n_embd`."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows(data / "vidur" / "history_c211fca" / kind / "p2p_inter_node.csv.gz"):
        size = 2.0 * int(row["n_embd"]) * int(row["num_tokens"])
        if row["num_tensor_parallel_workers"] == "1" and size <= 2**30:
            found[size].append(float(row["time_stats.send_recv.median"]))
    return measured(found)


def pcie4(data: Path) -> Link:
    """Two devices on PCIe 4 x16, from an all-to-all of an L40S pair, in which each sends half of its bytes."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows(data / "aiconfigurator" / "derived_csv" / "l40s__nccl__2.27.3__nccl_perf.csv.gz"):
        if (row["op_name"], row["nccl_dtype"], row["num_gpus"]) == ("alltoall", "half", "2"):
            found[float(row["message_size"])].append(float(row["latency"]))
    return measured(found)


def plain(latency_s: float, bytes_per_s: float) -> Link:
    return Link(latency_s, bytes_per_s)


def clusters(data: Path) -> list[Cluster]:
    nvlink_a100, nvlink_h100 = send_recv(data, "a100_dgx", 2), send_recv(data, "h100_dgx", 2)
    pod_a100, pod_h100 = between_hosts_2023(data, "a100"), send_recv(data, "h100_dgx", 1)
    a100 = f"figures of the device: {AICONFIGURATOR}; links measured: {VIDUR}: inside the host a100_dgx, between hosts"
    a100 += " p2p_inter_node of commit c211fca, whose 21 GB/s fit one 200 Gb/s port per device"
    h100 = (
        f"figures of the device: {AICONFIGURATOR}; links measured: {VIDUR}: h100_dgx inside the host and between hosts"
    )
    h200 = f"{h100} (measured on H100; the H200 has the same links)"
    pcie = pcie4(data)
    # 83% of the line rate, as measured between the A100 hosts of `between_hosts_2023`.
    infiniband_100 = plain(24e-6, 0.83 * 12.5e9)
    paper = "cluster: ExeGPT (arXiv 2404.07947), Table 1"
    a40 = (
        f"{paper}; device: NVIDIA A40 data sheet; link inside the host: all-to-all over PCIe 4 x16 measured on an L40S"
        f" pair, {AICONFIGURATOR}; between hosts an estimate: 83% of 100 Gb/s, latency as measured in a100_dgx, {VIDUR}"
    )
    paper_a100 = f"{paper}; {a100} (the paper's 1.6 Tb/s per host)"
    ada = f"device: NVIDIA Ada whitepaper; link inside the host: PCIe 4 x16 measured on an L40S pair, {AICONFIGURATOR}"
    tpu = (
        f"{TPU_DOCS}: a 2x4 slice; one of four ports, one way, is an eighth of the chip's {{}} GB/s; network {{}} x"
        f" {{}} Gb/s per host; latencies are estimates"
    )
    return [
        make("paper-a40-48", a40, "a40-48g", 6, 8, pcie, infiniband_100),
        make("paper-a100-16", paper_a100, "a100-80g", 2, 8, nvlink_a100, pod_a100),
        make("dgx-a100", a100, "a100-80g", 1, 8, nvlink_a100, pod_a100),
        make("dgx-h100", h100, "h100-80g", 1, 8, nvlink_h100, pod_h100),
        make("dgx-h200", h200, "h200-141g", 1, 8, nvlink_h100, pod_h100),
        make("one-a100", a100, "a100-80g", 1, 1, nvlink_a100, pod_a100),
        make("one-h100", h100, "h100-80g", 1, 1, nvlink_h100, pod_h100),
        make("one-h200", h200, "h200-141g", 1, 1, nvlink_h100, pod_h100),
        make("pod-1024-h100", h100, "h100-80g", 128, 8, nvlink_h100, pod_h100),
        make("one-rtx4090", ada, "rtx4090-24g", 1, 1, pcie, infiniband_100),
        make("tpu-v5e-8", tpu.format(400, 2, 100), "tpu-v5e", 1, 8, plain(5e-6, 50e9), plain(50e-6, 25e9)),
        make("tpu-v6e-8", tpu.format(800, 4, 200), "tpu-v6e", 1, 8, plain(5e-6, 100e9), plain(50e-6, 100e9)),
        make("cpu", CPU_SOURCE, "cpu", 1, 1, plain(20e-6, 5e9), plain(100e-6, 1e9)),
    ]


def make(name: str, source: str, kind: str, hosts: int, devices: int, inside: Link, between: Link) -> Cluster:
    """Hosts that are one island each, so that the link of the host level is the island's."""
    return Cluster(name, source, (KINDS[kind],), (HostGroup(kind, hosts, 1, devices),), inside, inside, between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "configs" / "clusters")
    flags = parser.parse_args()
    flags.output.mkdir(exist_ok=True)
    for cluster in clusters(flags.data):
        check_cluster(cluster, cluster.name)
        (flags.output / f"{cluster.name}.json").write_text(to_text(cluster))
        links = [
            f"{link.latency_s * 1e6:.0f} us, {link.bytes_per_s / 1e9:.3g} GB/s"
            for link in (cluster.island, cluster.pod)
        ]
        print(f"| {cluster.name} | {len(cluster.devices())} | {cluster.kinds[0].name} | {' | '.join(links)} |")


if __name__ == "__main__":
    main()
