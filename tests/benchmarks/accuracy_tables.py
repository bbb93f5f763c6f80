"""A2: how far interpolation in the published tables errs, by leaving points out; and what stand-ins cost.

    python -m tests.benchmarks.accuracy_tables

Interpolated is what the importers interpolate: log(time / roofline). `axis X`: each inner point is left out and read
from the straight line between its two neighbours along X in log X, all else equal: what a planner meets between two
grid points of one axis. `all axes`: the point is left out and the median is taken of those lines and of every pair of
them combined (one axis' line plus the other axis' correction to it), none of which sees the point itself. Last: heads
that no table holds, a device's attention estimated from another's, and the grids of profiles against what they sample.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind
from solver.facts.presets import CONFIGS
from solver.facts.profile import Table
from solver.facts.workload import Floats
from solver.importers import parts
from solver.importers.attention import Heads, Phase, attention_grids, attention_times, estimated_times, roofline_s
from solver.importers.collectives import all_reduce_grid
from solver.importers.compose import compose
from solver.importers.devices import DEVICES, TableDevice
from solver.importers.gemm import gemm_grid
from solver.importers.log_grid import LogGrid
from solver.importers.tables import TABLES
from tests.benchmarks import accuracy_report

# Model, device kind and tensor degree of the profiles whose grids are tried.
GRIDS = (("opt-13b", "a100-80g", 1), ("llama-3-70b", "h100-80g", 8), ("gpt3-175b", "a40-48g", 8))
SYSTEMS = ("a100-80g", "h100-80g", "h200-141g")
Dense = tuple[tuple[Floats, ...], Floats]


def straight(axes: tuple[Floats, ...], values: Floats, axis: int) -> Floats:
    """Each inner point from its neighbours along one axis; NaN at the ends and where a neighbour is missing."""
    x, moved = np.log(axes[axis]), np.moveaxis(values, axis, 0)
    found = np.full_like(moved, np.nan)
    for i in range(1, len(x) - 1):
        share = (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1])
        found[i] = moved[i - 1] * (1 - share) + moved[i + 1] * share
    return np.moveaxis(found, 0, axis)


def leave_one_out(axes: tuple[Floats, ...], values: Floats) -> tuple[list[Floats], Floats]:
    """Relative errors of times: along each axis alone, and of all axes together. `values` has NaN for gaps."""
    lines = [straight(axes, values, axis) for axis in range(len(axes))]
    pairs = [lines[a] + lines[b] - straight(axes, lines[a], b) for a, b in itertools.combinations(range(len(axes)), 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        together = np.nanmedian([*lines, *pairs], axis=0)
    return [np.exp(line - values) - 1 for line in lines], np.exp(together - values) - 1


def measured(grid: LogGrid) -> Floats:
    """Log ratios with NaN where the table has no row."""
    return np.where(grid.marks == 0, grid.log_ratio, np.nan)


def attention_tensor(grids: dict[tuple[int, int], LogGrid]) -> Dense:
    """[query heads, key/value heads, rows, tokens] from one grid per pair of heads."""
    query, key_value = (np.unique([pair[i] for pair in grids]).astype(np.float64) for i in (0, 1))
    rows, tokens = (np.unique(np.concatenate([grid.axes[i] for grid in grids.values()])) for i in (0, 1))
    dense = np.full((len(query), len(key_value), len(rows), len(tokens)), np.nan)
    for (q, g), grid in grids.items():
        where = np.ix_(np.searchsorted(rows, grid.axes[0]), np.searchsorted(tokens, grid.axes[1]))
        dense[np.searchsorted(query, q), np.searchsorted(key_value, g)][where] = measured(grid)
    return (query, key_value, rows, tokens), dense


def frameworks(device: TableDevice) -> list[tuple[str, str]]:
    return [(name, version) for name, version in (("vllm", device.vllm), ("trtllm", device.trtllm)) if version]


def table_rows(
    tables: Path,
    name: str,
    goals: tuple[str, str],
    dense: Callable[[TableDevice, str, str], Dense],
    axes: tuple[str, ...],
) -> list[accuracy_report.Row]:
    """Rows for every system and framework of one kind of table."""
    rows: list[accuracy_report.Row] = []
    for kind in SYSTEMS:
        device = DEVICES[kind]
        for framework, version in frameworks(device):
            sizes, values = dense(device, framework, version)
            alone, together = leave_one_out(sizes, values)
            case = f"{name}, {kind}, {framework} {version}"
            for axis, errors in zip(axes, alone, strict=True):
                if np.isfinite(errors).any():
                    rows.append(accuracy_report.error_row(f"{case}, axis {axis}", goals[0], errors))
            rows.append(accuracy_report.error_row(f"{case}, all axes", goals[1], together))
    return rows


def interpolation_rows(tables: Path) -> list[accuracy_report.Row]:
    """GEMM, attention of both phases, all-reduce."""

    def products(device: TableDevice, framework: str, version: str) -> Dense:
        grid = gemm_grid(tables, device, framework, version)
        return grid.axes, measured(grid)

    def attend(phase: Phase) -> Callable[[TableDevice, str, str], Dense]:
        return lambda device, framework, version: attention_tensor(
            attention_grids(tables, device, framework, version, phase)
        )

    heads = ("query heads", "key/value heads", "rows", "tokens")
    rows = table_rows(tables, "gemm", ("", "median <= 3%, p90 <= 12.5%"), products, ("m", "n", "k"))
    rows += table_rows(tables, "decode attention", ("", "median <= 1.1%"), attend("generation"), heads)
    rows += table_rows(tables, "prefill attention", ("", "median <= 2.0%"), attend("context"), heads)
    for kind in SYSTEMS:
        grids = [all_reduce_grid(tables, DEVICES[kind], n) for n in (2, 4, 8)]
        errors = np.concatenate([leave_one_out(grid.axes, measured(grid))[0][0] for grid in grids])
        rows.append(accuracy_report.error_row(f"all-reduce, {kind}, vllm, axis bytes", "median <= 3%", errors))
    return rows


def stand_in_rows(tables: Path) -> list[accuracy_report.Row]:
    """What reading a head count at more rows costs, and estimating a device's attention from another's."""
    rows = []
    for kind in ("a100-80g", "h200-141g"):
        grids = attention_grids(tables, DEVICES[kind], "trtllm", DEVICES[kind].trtllm, "generation")
        errors = []
        for heads in (16, 24, 32, 40, 48, 64):
            grid, few = grids[heads, heads], grids[8, 8]
            batch, context = np.meshgrid(*grid.axes, indexing="ij")
            ratio, marks = few.at(batch * heads / 8, context)
            known = (grid.marks == 0) & (marks < 2)
            base = roofline_s(DEVICES[kind], "generation", batch * heads / 8, context, Heads(8, 8))
            own = roofline_s(DEVICES[kind], "generation", batch, context, Heads(heads, heads))
            errors.append((ratio * base / (np.exp(grid.log_ratio) * own) - 1)[known])
        name = f"decode attention of 16-64 heads read from 8 heads at more rows, {kind}, trtllm"
        rows.append(accuracy_report.error_row(name, "", np.concatenate(errors)))
    phases: tuple[tuple[Phase, str], ...] = (("generation", "decode"), ("context", "prefill"))
    for phase, phase_name in phases:
        for source in ("h100-80g", "h200-141g"):
            apart = cross_device_errors(tables, source, "a100-80g", phase)
            name = f"{phase_name} attention of a100-80g estimated from {source} as the A40's is from A100"
            rows.append(accuracy_report.error_row(name, "", apart))
    return rows


def cross_device_errors(tables: Path, source: str, target: str, phase: Phase) -> Floats:
    """Relative errors of the estimate wherever the target's table has a row."""
    device = DEVICES[target]
    errors = []
    for (query, key_value), grid in attention_grids(tables, device, "vllm", device.vllm, phase).items():
        batch, tokens = np.meshgrid(*grid.axes, indexing="ij")
        heads = Heads(query, key_value)
        guess = estimated_times(tables, device, DEVICES[source], phase, batch, tokens, heads).seconds
        truth = attention_times(tables, device, phase, batch, tokens, heads).seconds
        errors.append((guess / truth - 1)[grid.marks == 0])
    return np.concatenate(errors)


def grid_rows(tables: Path, points: int = 400) -> list[accuracy_report.Row]:
    """What a profile's own grid loses: times read from it against times composed, at sizes drawn between its points."""
    rows = []
    for model, kind, tensor in (
        ("opt-13b", "a100-80g", 1),
        ("llama-3-70b", "h100-80g", 8),
        ("gpt3-175b", "a40-48g", 8),
    ):
        spec, device, layer_kind = read_model_spec(CONFIGS / "models" / f"{model}.json"), DEVICES[kind], LayerKind()
        layer = compose(spec, kind, "bfloat16", model, tables).layer(tensor, layer_kind)
        rng = np.random.default_rng(0)
        phases: tuple[tuple[Phase, Table, tuple[int, int]], ...] = (
            ("generation", layer.decode, (1024, 8192)),
            ("context", layer.encode, (64, 4096)),
        )
        for phase, table, most in phases:
            batch = np.round(np.exp(rng.uniform(0, np.log(most[0]), points))).astype(np.float64)
            tokens = np.round(np.exp(rng.uniform(np.log(16), np.log(most[1]), points))).astype(np.float64)
            dense = parts.dense_parts(tables, device, spec, tensor, batch if phase == "generation" else batch * tokens)
            attend = parts.attention_part(tables, device, spec, tensor, layer_kind, phase, batch, tokens)
            errors = table.at(batch, tokens) / parts.add([*dense, attend]).seconds - 1
            name = f"{'decode' if phase == 'generation' else 'encode'} grid of {model}, {kind}, tensor {tensor}"
            rows.append(accuracy_report.error_row(name, "", errors))
    return rows


if __name__ == "__main__":
    accuracy_report.write(
        "accuracy_tables",
        "A2: interpolation in the published tables, and stand-ins",
        [*interpolation_rows(TABLES), *stand_in_rows(TABLES), *grid_rows(TABLES)],
        (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
    )
