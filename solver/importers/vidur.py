"""Matrix products on devices that only vidur's tables know (A40): milliseconds per operator of three models there.

The twelve shards of three models give some (n, k); any other product takes the ratio to its roofline from the nearest
ones, weighted by inverse squared distance in log n and log k, and is marked as estimated.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers.devices import TableDevice
from solver.importers.gemm import roofline_s
from solver.importers.log_grid import LogGrid, Times, grid_of
from solver.importers.tables import read_columns

# Folder -> hidden, feed-forward width, query heads, key/value heads (the tables' own columns say the same).
MODELS = {
    "meta-llama/Llama-2-7b-hf": (4096, 11008, 32, 32),
    "meta-llama/Llama-2-70b-hf": (8192, 28672, 64, 8),
    "codellama/CodeLlama-34b-Instruct-hf": (8192, 22016, 64, 8),
}
DEGREES = (1, 2, 4, 8)
OPERATORS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
SMALL_OPERATORS = ("input_layernorm", "attn_rope", "mlp_act", "add")
_HEAD_DIM = 128


def product_shapes(model: str, tensor: int) -> dict[str, tuple[int, int]]:
    """Operator -> (n, k) on each of `tensor` devices; gate and up are one product."""
    hidden, mlp, heads, kv_heads = MODELS[model]
    query, key_value = heads // tensor, max(1, kv_heads // tensor)
    return {
        "attn_pre_proj": ((query + 2 * key_value) * _HEAD_DIM, hidden),
        "attn_post_proj": (hidden, query * _HEAD_DIM),
        "mlp_up_proj": (2 * mlp // tensor, hidden),
        "mlp_down_proj": (hidden, mlp // tensor),
    }


@functools.lru_cache(maxsize=8)
def _model_columns(path: Path) -> dict[str, Floats]:
    names = [f"time_stats.{operator}.median" for operator in (*OPERATORS, *SMALL_OPERATORS)]
    return read_columns(path, ("num_tokens", "num_tensor_parallel_workers", *names))


def operator_seconds(folder: Path, vidur: str, model: str, tensor: int, operator: str) -> tuple[Floats, Floats]:
    """Tokens and median seconds of one operator."""
    columns = _model_columns(folder / "vidur" / "data" / "profiling" / "compute" / vidur / model / "mlp.csv.gz")
    chosen = columns["num_tensor_parallel_workers"] == tensor
    return columns["num_tokens"][chosen], 1e-3 * columns[f"time_stats.{operator}.median"][chosen]


@functools.lru_cache(maxsize=4)
def _curves(folder: Path, device: TableDevice) -> tuple[tuple[tuple[int, int], LogGrid], ...]:
    """Ratios over tokens for each measured (n, k)."""
    curves: dict[tuple[int, int], LogGrid] = {}
    for model in MODELS:
        for tensor in DEGREES:
            for operator, (n, k) in product_shapes(model, tensor).items():
                tokens, seconds = operator_seconds(folder, device.vidur, model, tensor, operator)
                ratio = np.log(np.maximum(seconds, 1e-6) / roofline_s(device, tokens, n, k))
                curves.setdefault((n, k), grid_of((tokens,), ratio))
    return tuple(curves.items())


def gemm_times(folder: Path, device: TableDevice, m: Floats, n: int, k: int) -> Times:
    """Seconds of products with m rows each."""
    curves = _curves(folder, device)
    squares = np.array([np.log(a / n) ** 2 + np.log(b / k) ** 2 for (a, b), _ in curves])
    found = [grid.at(m) for _, grid in curves]
    exact = int(np.argmin(squares))
    if squares[exact] == 0:
        ratio, marks = found[exact]
    else:
        nearest = np.argsort(squares, kind="stable")[:4]
        weights = 1 / squares[nearest]
        logs = np.stack([np.log(found[i][0]) for i in nearest])
        ratio = np.exp((weights @ logs.reshape(len(nearest), -1) / weights.sum()).reshape(logs.shape[1:]))
        marks = np.full(ratio.shape, Mark.ESTIMATED, np.uint8)
    return Times(ratio * roofline_s(device, m, n, k), marks)
