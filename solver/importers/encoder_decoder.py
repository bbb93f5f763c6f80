"""What a layer of an encoder-decoder model is made of, in either phase, out of the same parts as any other.

Tables hold causal attention over a prompt; an encoder's sees all of it, twice the scores, and no table knows biases by
distance: estimates both. A decoder layer attends to its output and to the prompt in two kernels, which share the
context of a row between them, half each here; of a prompt it makes keys and values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import Mark
from solver.facts.workload import Floats
from solver.importers import collectives, parts
from solver.importers.devices import TABLE_BYTES, TableDevice
from solver.importers.log_grid import Times


def encode_times(
    folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, kind: LayerKind, rows: Floats, tokens: Floats
) -> Times:
    """Of one encode call: `rows` prompts of so many tokens."""
    if kind.name == "cross":
        key_value = 2 * spec.stored_kv_heads(tensor) // tensor * spec.head_dim
        made = parts.products(folder, device, rows * tokens, key_value, spec.hidden_size)
        return parts.add([made, parts.streaming(device, TABLE_BYTES * 2 * key_value * rows * tokens)])
    causal = parts.attention_part(folder, device, spec, tensor, kind, "context", rows, tokens)
    whole = Times(2 * causal.seconds, np.full(causal.seconds.shape, Mark.ESTIMATED, np.uint8))
    return parts.add([*parts.dense_parts(folder, device, spec, tensor, rows * tokens), whole])


def decode_times(
    folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, kind: LayerKind, rows: Floats, context: Floats
) -> Times:
    """Of one decode iteration, in which an encoder's layers have no part; `context`: prompt and output so far."""
    if kind.name == "encoder":
        return Times(np.zeros(rows.shape), np.zeros(rows.shape, np.uint8))
    half = parts.attention_part(folder, device, spec, tensor, kind, "generation", rows, context / 2)
    marks = np.maximum(half.marks, Mark.ESTIMATED).astype(np.uint8)
    dense = parts.dense_parts(folder, device, spec, tensor, rows)
    cross = _cross_parts(folder, device, spec, tensor, rows)
    return parts.add([*dense, *cross, Times(2 * half.seconds, marks)])


def _cross_parts(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, rows: Floats) -> list[Times]:
    """Query and output of cross-attention, its norm, and the sum over devices."""
    query, hidden = spec.heads // tensor * spec.head_dim, spec.hidden_size
    found = [
        parts.products(folder, device, rows, query, hidden),
        parts.products(folder, device, rows, hidden, query),
        parts.streaming(device, TABLE_BYTES * 4 * hidden * rows),
    ]
    if tensor > 1:
        found.append(collectives.all_reduce_times(folder, device, tensor, TABLE_BYTES * hidden * rows))
    return found
