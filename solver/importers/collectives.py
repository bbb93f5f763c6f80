"""Times of an all-reduce among the devices of an island.

aiconfigurator: milliseconds by message size in ELEMENTS of two bytes; vLLM's own kernel under a captured graph, as its
decode runs. vidur: milliseconds by tokens of 4,096 elements of two bytes.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers.devices import TABLE_BYTES, TableDevice
from solver.importers.log_grid import LogGrid, Times, grid_of
from solver.importers.tables import read_columns

_VIDUR_WIDTH = 4096
# Rows of the table (one per rank, token by token at first) that a running median takes together.
_NEIGHBOURS = 41


@functools.lru_cache(maxsize=16)
def all_reduce_grid(folder: Path, device: TableDevice, devices: int) -> LogGrid:
    """Logarithm of seconds per byte over bytes."""
    if device.system:
        name = f"{device.system}__vllm__{device.vllm}__custom_allreduce_perf.csv.gz"
        where = {"num_gpus": str(devices), "backend": "vllm_graph"}
        columns = read_columns(folder / "aiconfigurator" / "derived_csv" / name, ("message_size", "latency"), where)
        sizes, seconds = columns["message_size"] * TABLE_BYTES, columns["latency"] * 1e-3
    else:
        path = folder / "vidur" / "history_c211fca" / device.vidur / "all_reduce.csv.gz"
        where = {"num_workers": str(devices), "n_embd": str(_VIDUR_WIDTH)}
        columns = read_columns(path, ("num_tokens", "time_stats.all_reduce.median"), where)
        sent = columns["num_tokens"] > 0
        sizes = columns["num_tokens"][sent] * _VIDUR_WIDTH * TABLE_BYTES
        seconds = columns["time_stats.all_reduce.median"][sent] * 1e-3
        order = np.argsort(sizes, kind="stable")
        sizes, seconds = sizes[order], _running_median(seconds[order])
    return grid_of((sizes,), np.log(seconds / sizes))


def _running_median(seconds: Floats) -> Floats:
    """Median of each and its neighbours: vidur launched these from the host, whose jitter is twofold at short ones."""
    half = _NEIGHBOURS // 2
    padded = np.pad(seconds, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _NEIGHBOURS), axis=1)


def all_reduce_times(folder: Path, device: TableDevice, devices: int, size_bytes: Floats) -> Times:
    """Seconds to sum `size_bytes` held by each of `devices`; messages below the table's cost as its smallest."""
    grid = all_reduce_grid(folder, device, devices)
    size = np.maximum(size_bytes, grid.axes[0][0])
    ratio, marks = grid.at(size)
    below = np.where(size_bytes < grid.axes[0][0], Mark.EXTRAPOLATED, Mark.MEASURED)
    return Times(ratio * size, np.maximum(marks, below).astype(np.uint8))
