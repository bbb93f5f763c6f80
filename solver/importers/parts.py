"""What one layer, and each end, is made of: matrix products, attention, all-reduces, and kernels that only move bytes.

Adding parts adds their times. The sum carries the worst mark among the parts that matter: an estimate of the norms, a
few percent of a layer, does not make the layer an estimate; it does once such parts reach a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers import attention, collectives, gemm, llmservingsim, vidur
from solver.importers.devices import TABLE_BYTES, TableDevice, streaming_s
from solver.importers.log_grid import Times

NEGLIGIBLE_SHARE = 0.1
# Passes over float32 logits that sampling makes: penalties and noise, the sort's few, the pick.
SAMPLING_PASSES = 8
_LOGIT_BYTES = 4


def add(parts: Sequence[Times]) -> Times:
    """Sum of parts; marks as the module says."""
    seconds = np.sum([part.seconds for part in parts], axis=0)
    marks = np.full(seconds.shape, Mark.MEASURED, np.uint8)
    for mark in list(Mark)[1:]:
        marked = np.sum([np.where(part.marks >= mark, part.seconds, 0.0) for part in parts], axis=0)
        marks = np.where(marked >= NEGLIGIBLE_SHARE * seconds, mark, marks).astype(np.uint8)
    return Times(seconds, marks)


def products(folder: Path, device: TableDevice, m: Floats, n: int, k: int) -> Times:
    """One matrix product of m rows, from the tables that speak for the device."""
    importer = gemm if device.system else vidur
    return importer.gemm_times(folder, device, m, n, k)


def streaming(device: TableDevice, size_bytes: Floats) -> Times:
    """One kernel that only moves bytes: always an estimate."""
    seconds = streaming_s(device, size_bytes)
    return Times(seconds, np.full(seconds.shape, Mark.ESTIMATED, np.uint8))


def dense_parts(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, tokens: Floats) -> list[Times]:
    """Everything of a layer that sees tokens one by one: four products, two norms, positions, activation, two sums."""
    if device.single:
        return llmservingsim.dense_parts(folder, device, tokens)
    query = spec.heads // tensor * spec.head_dim
    key_value = spec.stored_kv_heads(tensor) // tensor * spec.head_dim
    mlp, hidden = spec.mlp_size // tensor, spec.hidden_size
    parts = [
        products(folder, device, tokens, query + 2 * key_value, hidden),
        products(folder, device, tokens, hidden, query),
        products(folder, device, tokens, (2 if spec.gated_mlp else 1) * mlp, hidden),
        products(folder, device, tokens, hidden, mlp),
    ]
    moved = [4 * hidden, 4 * hidden, 2 * key_value, (3 if spec.gated_mlp else 2) * mlp]
    if spec.rope is not None:
        moved.append(2 * (query + key_value))
    if spec.qk_norm:
        moved.append(2 * (query + key_value))
    parts += [streaming(device, TABLE_BYTES * width * tokens) for width in moved]
    if tensor > 1:
        one = collectives.all_reduce_times(folder, device, tensor, TABLE_BYTES * hidden * tokens)
        parts += [one, one]
    return parts


def attention_part(
    folder: Path,
    device: TableDevice,
    spec: ModelSpec,
    tensor: int,
    kind: LayerKind,
    phase: attention.Phase,
    rows: Floats,
    tokens: Floats,
) -> Times:
    """Attention of one layer. A window cuts a decode step's context, and a prompt's scores (estimated)."""
    if device.single:
        return llmservingsim.attention_part(folder, device, phase, rows, tokens)
    heads = attention.Heads(spec.heads // tensor, spec.stored_kv_heads(tensor) // tensor, spec.head_dim)
    window = kind.window_tokens
    seen = tokens if window is None or phase == "context" else np.minimum(tokens, window)
    times = attention.attention_times(folder, device, phase, rows, seen, heads)
    if window is None or phase == "generation":
        return times
    outside = np.maximum(tokens - window, 0)
    share = 1 - outside * (outside + 1) / (tokens * (tokens + 1))
    marks = np.where(outside > 0, Mark.ESTIMATED, times.marks).astype(np.uint8)
    return Times(times.seconds * share, marks)


def embed_parts(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, tokens: Floats) -> list[Times]:
    """Rows of the embedding are read and written; with the vocabulary cut, partial rows are summed."""
    if device.single:
        return llmservingsim.embed_parts(folder, device, tokens)
    reads = 2 if spec.rope is not None else 3
    parts = [streaming(device, TABLE_BYTES * reads * spec.hidden_size * tokens)]
    if tensor > 1:
        parts.append(collectives.all_reduce_times(folder, device, tensor, TABLE_BYTES * spec.hidden_size * tokens))
    return parts


def head_parts(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, rows: Floats) -> list[Times]:
    """Norm, head and sampling; the logits of a cut vocabulary are gathered, taken as half of a sum of that size."""
    if device.single:
        return llmservingsim.head_parts(folder, device, rows)
    vocab = spec.padded_vocab(tensor) // tensor
    parts = [
        streaming(device, TABLE_BYTES * 2 * spec.hidden_size * rows),
        products(folder, device, rows, vocab, spec.hidden_size),
        streaming(device, _LOGIT_BYTES * SAMPLING_PASSES * vocab * tensor * rows),
    ]
    if tensor > 1:
        gathered = collectives.all_reduce_times(folder, device, tensor, TABLE_BYTES * vocab * tensor * rows)
        parts.append(Times(gathered.seconds / 2, np.full(rows.shape, Mark.ESTIMATED, np.uint8)))
    return parts
