"""Times of matrix products [m, k] x [k, n] from aiconfigurator's tables (milliseconds there)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from solver.facts.workload import Floats
from solver.importers.devices import LAUNCH_S, TABLE_BYTES, TableDevice
from solver.importers.log_grid import LogGrid, Times, grid_of
from solver.importers.tables import read_columns


def roofline_s(device: TableDevice, m: Floats | float, n: Floats | float, k: Floats | float) -> Floats:
    """Operations at the peak rate plus bytes at the peak bandwidth plus a launch: smooth, unlike their maximum."""
    m, n, k = (np.asarray(size, np.float64) for size in (m, n, k))
    moved = TABLE_BYTES * (m * k + k * n + m * n)
    return 2 * m * n * k / device.flops_per_s + moved / device.bytes_per_s + LAUNCH_S


@functools.lru_cache(maxsize=16)
def gemm_grid(folder: Path, device: TableDevice, framework: str, version: str) -> LogGrid:
    """Ratios over (m, n, k) in 16-bit floats."""
    name = f"{device.system}__{framework}__{version}__gemm_perf.csv.gz"
    columns = read_columns(folder / "aiconfigurator" / "derived_csv" / name, ("m", "n", "k", "latency"))
    m, n, k = columns["m"], columns["n"], columns["k"]
    return grid_of((m, n, k), np.log(columns["latency"] * 1e-3 / roofline_s(device, m, n, k)))


def gemm_times(folder: Path, device: TableDevice, m: Floats, n: int, k: int) -> Times:
    """Seconds of products with m rows each."""
    ratio, marks = gemm_grid(folder, device, "vllm", device.vllm).at(m, float(n), float(k))
    return Times(ratio * roofline_s(device, m, n, k), marks)
