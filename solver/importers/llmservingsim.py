"""Layers of Llama 3.1 8B on one RTX 4090 or one TPU v6e, from LLMServingSim's tables: no other shape, no other degree.

Units: microseconds in the newer layout (RTX 4090), nanoseconds in the older (TPU v6e). The TPU's tables lack the key
and value projections, the activation, a sampler, and the up projection of few tokens. The first take a quarter of the
query projection each (they have a quarter of its columns), the up projection is taken as the gate's equal, the rest
comes from bandwidth; all of these are marked as estimated.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers.attention import Heads, Phase, roofline_s
from solver.importers.devices import TABLE_BYTES, TableDevice, streaming_s
from solver.importers.log_grid import LogGrid, Times, grid_of
from solver.importers.tables import read_columns

_GPU = Path("llmservingsim/profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1")
_TPU = Path("llmservingsim/profiler/v0/perf_models/TPU-v6e-1/meta-llama/Llama-3.1-8B/tp1")
_GPU_LAYER = ("layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
_TPU_LAYER = ("input_layernorm", "q_proj", "rope", "o_proj", "post_layernorm", "gate_proj", "down_proj")
_GPU_ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
_TPU_ATTENTION = ("prefill_chunk_size", "kv_cache_size", "batch_size", "p50_ns")
# hidden, feed-forward, query heads, key/value heads, width of a head, vocabulary.
_SHAPE = (4096, 14336, 32, 8, 128, 128256)
_HEADS = Heads(32, 8)
_SAMPLING_BYTES = 32


def check_shape(spec: ModelSpec, device: TableDevice) -> None:
    """Raises ValueError with one line for every model but the one measured."""
    shape = (spec.hidden_size, spec.mlp_size, spec.heads, spec.kv_heads, spec.head_dim, spec.vocab_size)
    if shape != _SHAPE or not spec.gated_mlp or any(run.kind.window_tokens for run in spec.layers):
        raise ValueError(
            f"device_kind: the published tables of {device.kind} hold Llama 3.1 8B alone; "
            "measure other models there with exegpt profile --model=DIR"
        )


def dense_parts(folder: Path, device: TableDevice, tokens: Floats) -> list[Times]:
    """Everything of a layer but attention."""
    if device.single == "gpu":
        return [_at(_gpu_curve(folder, "dense", "tokens", name), tokens) for name in _GPU_LAYER]
    parts = [_at(_tpu_curve(folder, name), tokens) for name in _TPU_LAYER]
    query, gate = parts[1], parts[5]
    missing = (0.5 * query.seconds, gate.seconds, streaming_s(device, 3 * TABLE_BYTES * 14336 * tokens))
    return [*parts, *(_estimate(seconds) for seconds in missing)]


def attention_part(folder: Path, device: TableDevice, phase: Phase, rows: Floats, tokens: Floats) -> Times:
    """Attention of one layer. Prompts were measured one at a time: several take the sum, marked as extrapolated."""
    rows, tokens = np.broadcast_arrays(rows, tokens)
    grid = _attention_grid(folder, device, phase)
    if phase == "generation":
        ratio, marks = grid.at(rows, tokens)
        return Times(ratio * roofline_s(device, phase, rows, tokens, _HEADS), marks)
    ratio, marks = grid.at(tokens)
    several = np.where(rows > 1, Mark.EXTRAPOLATED, Mark.MEASURED)
    seconds = rows * ratio * roofline_s(device, phase, np.ones_like(rows), tokens, _HEADS)
    return Times(seconds, np.maximum(marks, several).astype(np.uint8))


def embed_parts(folder: Path, device: TableDevice, tokens: Floats) -> list[Times]:
    """The embedding."""
    gpu = device.single == "gpu"
    return [_at(_gpu_curve(folder, "dense", "tokens", "embedding") if gpu else _tpu_curve(folder, "embedding"), tokens)]


def head_parts(folder: Path, device: TableDevice, rows: Floats) -> list[Times]:
    """Last norm, head and sampling."""
    if device.single == "gpu":
        curves = [_gpu_curve(folder, "dense", "tokens", "final_layernorm")]
        curves += [_gpu_curve(folder, "per_sequence", "sequences", name) for name in ("lm_head", "sampler")]
        return [_at(curve, rows) for curve in curves]
    sampling = _estimate(streaming_s(device, _SAMPLING_BYTES * _SHAPE[-1] * rows))
    return [*(_at(_tpu_curve(folder, name), rows) for name in ("final_layernorm", "lm_head")), sampling]


def _estimate(seconds: Floats) -> Times:
    return Times(seconds, np.full(seconds.shape, Mark.ESTIMATED, np.uint8))


Curve = tuple[LogGrid, float, float]


def _at(curve: Curve, sizes: Floats) -> Times:
    grid, constant, slope = curve
    ratio, marks = grid.at(sizes)
    return Times(ratio * (constant + slope * sizes), marks)


def _curve(sizes: Floats, seconds: Floats) -> Curve:
    """Ratios to a line from the shortest time with the slope of the last: beyond the table, time grows so."""
    constant, slope = float(seconds.min()), float(seconds[np.argmax(sizes)] / sizes.max())
    return grid_of((sizes,), np.log(seconds / (constant + slope * sizes))), constant, slope


@functools.lru_cache(maxsize=32)
def _gpu_curve(folder: Path, file: str, size: str, layer: str) -> Curve:
    columns = read_columns(folder / _GPU / f"{file}.csv.gz", (size, "time_us"), {"layer": layer})
    return _curve(columns[size], 1e-6 * columns["time_us"])


@functools.lru_cache(maxsize=32)
def _tpu_curve(folder: Path, layer: str) -> Curve:
    columns = read_columns(folder / _TPU / "layers.csv.gz", ("input", "latency(ns)"), {"layer_name": layer})
    return _curve(columns["input"], 1e-9 * columns["latency(ns)"])


@functools.lru_cache(maxsize=8)
def _attention_grid(folder: Path, device: TableDevice, phase: Phase) -> LogGrid:
    """Ratios over (rows, context) of decode, over tokens of a prompt with nothing cached before it."""
    if device.single == "gpu":
        columns = read_columns(folder / _GPU / "attention.csv.gz", _GPU_ATTENTION)
        chunk, before, rows, context, seconds = columns.values()
        seconds = 1e-6 * seconds
    else:
        columns = read_columns(folder / _TPU / "attention.csv.gz", _TPU_ATTENTION)
        chunk, before, rows, seconds = columns.values()
        context, rows, seconds = before, np.where(chunk > 0, 0.0, rows), 1e-9 * seconds
    if phase == "generation":
        chosen = chunk == 0
        rows, context, seconds = rows[chosen], context[chosen], seconds[chosen]
        return grid_of((rows, context), np.log(seconds / roofline_s(device, phase, rows, context, _HEADS)))
    chosen = (rows == 0) & (before == 0)
    chunk, seconds = chunk[chosen], seconds[chosen]
    return grid_of((chunk,), np.log(seconds / roofline_s(device, phase, np.ones_like(chunk), chunk, _HEADS)))
