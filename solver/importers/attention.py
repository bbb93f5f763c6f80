"""Times of one layer's attention from aiconfigurator's tables (milliseconds there; heads are those of one device).

Tables exist for some counts of query and key/value heads. Rows and key/value heads are alike to a kernel: each pair is
work on its own, so a missing head count with the same queries per key/value head is read at proportionally more rows,
and marked as extrapolated. Where that ratio is missing too, the nearest ratio serves, marked as estimated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Literal

import numpy as np

from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers.devices import DEVICES, LAUNCH_S, TABLE_BYTES, TableDevice
from solver.importers.log_grid import LogGrid, Times, grid_of
from solver.importers.tables import read_columns

Phase = Literal["context", "generation"]
_TABLE_HEAD_DIM = 128
# The device whose attention stands in where there is no table: the same generation as the A40.
STAND_IN = "a100-80g"


@dataclasses.dataclass(frozen=True)
class Heads:
    """Query and key/value heads on one device, and their width."""

    query: int
    key_value: int
    width: int = _TABLE_HEAD_DIM


def roofline_s(device: TableDevice, phase: Phase, rows: Floats, tokens: Floats, heads: Heads) -> Floats:
    """Operations plus bytes plus a launch. Prefill is causal: half the scores; decode reads the whole context."""
    pairs = tokens * tokens / 2 if phase == "context" else tokens
    queries = tokens if phase == "context" else np.ones_like(tokens)
    flops = 4 * rows * pairs * heads.query * heads.width
    moved = 2 * TABLE_BYTES * rows * heads.width * (tokens * heads.key_value + queries * heads.query)
    return flops / device.flops_per_s + moved / device.bytes_per_s + LAUNCH_S


@functools.lru_cache(maxsize=32)
def attention_grids(
    folder: Path, device: TableDevice, framework: str, version: str, phase: Phase
) -> dict[tuple[int, int], LogGrid]:
    """Ratios over (rows, tokens) for each (query heads, key/value heads) of width 128 without a window.

    The context that a decode step attends to is the table's `step` and the token itself.
    """
    path = folder / "aiconfigurator" / "derived_csv"
    path /= f"{device.system}__{framework}__{version}__{phase}_attention_perf.csv.gz"
    names = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "latency")
    where = {"head_dim": "128"} | ({"window_size": "0"} if framework == "trtllm" else {})
    columns = read_columns(path, names, where)
    tokens = columns["isl"] if phase == "context" else columns["step"] + 1
    grids = {}
    pairs = np.stack([columns["num_heads"], columns["num_key_value_heads"]], axis=1)
    for query, key_value in np.unique(pairs, axis=0):
        chosen = (pairs == (query, key_value)).all(axis=1)
        rows, length, seconds = columns["batch_size"][chosen], tokens[chosen], columns["latency"][chosen] * 1e-3
        heads = Heads(int(query), int(key_value))
        ratio = np.log(seconds / roofline_s(device, phase, rows, length, heads))
        grids[heads.query, heads.key_value] = grid_of((rows, length), ratio)
    return grids


def attention_times(
    folder: Path, device: TableDevice, phase: Phase, rows: Floats, tokens: Floats, heads: Heads
) -> Times:
    """Seconds of one layer's attention; rows and tokens (of prompt, or of context) broadcast together."""
    rows, tokens = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(tokens, np.float64))
    if not device.system:
        return estimated_times(folder, device, DEVICES[STAND_IN], phase, rows, tokens, heads)
    grids = attention_grids(folder, device, "vllm", device.vllm, phase)
    stand_in, mark = _stand_in(tuple(grids), heads)
    more = heads.key_value * heads.width / (stand_in.key_value * stand_in.width)
    ratio, marks = grids[stand_in.query, stand_in.key_value].at(rows * more, tokens)
    seconds = ratio * roofline_s(device, phase, rows * more, tokens, stand_in)
    if mark == Mark.ESTIMATED:
        own, other = (roofline_s(device, phase, r, tokens, h) for r, h in ((rows, heads), (rows * more, stand_in)))
        seconds = seconds * own / other
    return Times(seconds, np.maximum(marks, mark).astype(np.uint8))


def estimated_times(
    folder: Path,
    device: TableDevice,
    other: TableDevice,
    phase: Phase,
    rows: Floats,
    tokens: Floats,
    heads: Heads,
) -> Times:
    """Attention of a device without a table: another's ratio to its roofline, on this one's roofline."""
    known = attention_times(folder, other, phase, rows, tokens, heads)
    ratio = known.seconds / roofline_s(other, phase, rows, tokens, heads)
    seconds = ratio * roofline_s(device, phase, rows, tokens, heads)
    return Times(seconds, np.full(seconds.shape, Mark.ESTIMATED, np.uint8))


def _stand_in(known: tuple[tuple[int, int], ...], heads: Heads) -> tuple[Heads, Mark]:
    """The heads of a table that come nearest, and the best mark that its numbers may then carry."""
    narrow = heads.width != _TABLE_HEAD_DIM
    if (heads.query, heads.key_value) in known:
        return Heads(heads.query, heads.key_value), Mark.ESTIMATED if narrow else Mark.MEASURED
    per_group = heads.query / heads.key_value

    def distance(pair: tuple[int, int]) -> tuple[float, float]:
        query, key_value = pair
        return abs(math.log(query / key_value / per_group)), abs(math.log(key_value / heads.key_value))

    query, key_value = min(known, key=distance)
    same = query * heads.key_value == heads.query * key_value
    return Heads(query, key_value), Mark.EXTRAPOLATED if same and not narrow else Mark.ESTIMATED
