"""Bytes per device: weights, cache, payloads and temporaries, counted the way the engine allocates them.

Planner, admission, `exegpt check` and the engine's own start all ask the functions here, so a number that is predicted
is the number that is allocated: vocabularies are padded to the tensor degree and key/value heads repeated up to it.
Weights, cache, counts and payloads are exact; temporaries are what the largest programs are known to hold beside them.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

from solver.facts.model_spec import ModelSpec
from solver.facts.parameters import parameters
from solver.plan.buckets import Buckets
from solver.plan.schedule import Schedule, StageSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGIT_BYTES = 4
# Per row and vocabulary entry, for penalties: int32 count over the output and a flag for tokens of the prompt.
COUNT_BYTES = 5
# Float32 copies of the logits that sampling holds at once: scores, sorted scores, their ids, noise.
SAMPLING_COPIES = 4
# Long prompts attend block by block of queries; scores exist before and after the softmax.
BLOCK_QUERIES = 256
MAX_BLOCKS = 8
SCORE_COPIES = 2


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """What one device holds at most.

    Attributes:
      stage: index of the stage that the device belongs to.
      device: its id.
      weights_bytes: parameters.
      cache_bytes: key/value cache of all rows.
      counts_bytes: token counts of all rows, where the stage samples.
      payload_bytes: prompts that were encoded and wait for insertion: the largest encode call.
      temporary_bytes: the larger of what decode and encode programs hold while they run.
    """

    stage: int
    device: int
    weights_bytes: int
    cache_bytes: int
    counts_bytes: int
    payload_bytes: int
    temporary_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.counts_bytes + self.payload_bytes + self.temporary_bytes


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element. Raises ValueError on a dtype that the engine does not compute in."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype: {dtype!r} is not supported; choose one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


# Ladders at most double, so the largest copy that decode takes out of the cache is nearly half of it, but for one row.
LEAST_VIEW_SHARE = 0.49


@functools.lru_cache(maxsize=4096)
def weight_bytes(spec: ModelSpec, stage: StageSpec, dtype: str) -> int:
    """Bytes of parameters on each device of the stage."""
    found = parameters(spec, stage.layers, stage.tensor)
    return sum(parameter.elements_per_device(stage.tensor) for parameter in found) * dtype_bytes(dtype)


def cache_row_bytes(spec: ModelSpec, stage: StageSpec, cache_tokens: int, cache_dtype: str) -> int:
    """Bytes of keys and values that `cache_tokens` positions of one row take on each device of the stage.

    With an encoder, decoder layers alone hold them: the prompt's for cross-attention, and those of the output behind.
    """
    layers = spec.cached_layers(stage.layers)
    heads = spec.stored_kv_heads(stage.tensor) // stage.tensor
    return 2 * layers * cache_tokens * heads * spec.head_dim * dtype_bytes(cache_dtype)


def payload_bytes(spec: ModelSpec, stage: StageSpec, rows: int, tokens: int, cache_dtype: str) -> int:
    """Bytes on each device of what an encode call of shape [rows, tokens] hands to `insert`."""
    return rows * cache_row_bytes(spec, stage, tokens, cache_dtype)


def counts_bytes(spec: ModelSpec, stage: StageSpec, rows: int) -> int:
    """Bytes on each device of the token counts behind penalties; only a stage that samples holds them."""
    if stage.layers[1] != spec.num_layers:
        return 0
    return rows * spec.padded_vocab(stage.tensor) * COUNT_BYTES


def view_bytes(spec: ModelSpec, stage: StageSpec, buckets: Buckets, cache_dtype: str) -> int:
    """Bytes on each device of the largest copy that decode takes out of the cache.

    A decode program slices the lowest `decode_rows` x `cache_tokens` before its loop; the full size needs no copy.
    """
    rows, tokens = buckets.decode_rows, buckets.cache_tokens
    row_tokens = max((r * t for r in rows[-2:] for t in tokens[-2:] if (r, t) != (rows[-1], tokens[-1])), default=0)
    return row_tokens * cache_row_bytes(spec, stage, 1, cache_dtype)


def memory_table(
    spec: ModelSpec,
    schedule: Schedule,
    buckets: Buckets,
    dtype: str,
    cache_dtype: str,
    cache_layout: Literal["slots", "paged"] = "slots",
) -> tuple[DeviceMemory, ...]:
    """What every device of the schedule holds at most, stage by stage; pages are attended to where they lie."""
    table: list[DeviceMemory] = []
    for index, stage in enumerate(schedule.stages):
        decodes = stage.role != "encode"
        row_bytes = cache_row_bytes(spec, stage, buckets.cache_tokens[-1], cache_dtype)
        memory = DeviceMemory(
            stage=index,
            device=-1,
            weights_bytes=weight_bytes(spec, stage, dtype),
            cache_bytes=schedule.max_rows * row_bytes if decodes else 0,
            counts_bytes=counts_bytes(spec, stage, schedule.max_rows),
            payload_bytes=_largest_payload(spec, stage, buckets, cache_dtype),
            temporary_bytes=max(
                _encode_temporaries(spec, stage, buckets, dtype),
                _decode_temporaries(spec, stage, buckets, dtype, cache_dtype, cache_layout) if decodes else 0,
            ),
        )
        table.extend(dataclasses.replace(memory, device=device) for device in stage.devices)
    return tuple(table)


def by_device(table: Sequence[DeviceMemory]) -> tuple[DeviceMemory, ...]:
    """One entry per device: what stages that share one hold there together, under the number of the last of them."""
    found: dict[int, DeviceMemory] = {}
    for entry in table:
        before = found.get(entry.device)
        sums = {
            field.name: getattr(entry, field.name) + (0 if before is None else getattr(before, field.name))
            for field in dataclasses.fields(entry)
            if field.name.endswith("_bytes")
        }
        found[entry.device] = dataclasses.replace(entry, **sums)
    return tuple(found.values())


def rows_that_fit(memory_of: Callable[[int], Sequence[DeviceMemory]], usable_bytes: int, limit: int) -> int:
    """The most rows, at most `limit`, with which every device stays within `usable_bytes`.

    Args:
      memory_of: rows -> `memory_table` of the schedule that allocates them. Where its bytes fall as rows rise (ladders
        of buckets do that a little), the result fits, though a slightly larger one may fit too.
      usable_bytes: what each device may hold: its memory times --memory_fraction.
      limit: rows that are never exceeded.

    Raises:
      ValueError: not even one row fits.
    """

    def needed_bytes(rows: int) -> int:
        return max(memory.total_bytes for memory in memory_of(rows))

    fitting = bisect.bisect_right(range(1, limit + 1), usable_bytes, key=needed_bytes)
    if fitting == 0:
        raise ValueError(out_of_memory(memory_of(1), usable_bytes))
    return fitting


FEWER_BYTES = "raise --memory_fraction, lower --max_rows or --cache_tokens, or raise --tensor"


def out_of_memory(table: Sequence[DeviceMemory], usable_bytes: int, remedy: str = FEWER_BYTES) -> str:
    """One line that says by how much the fullest device overflows and which flags of the command change that."""
    fullest = max(table, key=lambda memory: memory.total_bytes)
    parts = ", ".join(
        f"{field.name.removesuffix('_bytes')} {format_bytes(getattr(fullest, field.name))}"
        for field in dataclasses.fields(fullest)
        if field.name.endswith("_bytes")
    )
    return (
        f"memory: device {fullest.device} needs {format_bytes(fullest.total_bytes)} ({parts}) but may use "
        f"{format_bytes(usable_bytes)}; {remedy}"
    )


def format_bytes(size_bytes: int) -> str:
    """Up to four significant digits and a binary unit."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _largest_payload(spec: ModelSpec, stage: StageSpec, buckets: Buckets, cache_dtype: str) -> int:
    """The larger of one full batch of prompts and one prompt as long as a row, encoded in chunks as no encoder does."""
    batch_row_tokens = buckets.encode_rows[-1] * buckets.encode_tokens[-1]
    chunked_tokens = 0 if spec.encoder_layers else buckets.cache_tokens[-1]
    return payload_bytes(spec, stage, 1, max(batch_row_tokens, chunked_tokens), cache_dtype)


def activation_bytes(spec: ModelSpec, stage: StageSpec, rows: int, tokens: int, keys: int, dtype: str) -> int:
    """The widest moment of one block: residuals, what the feed-forward layer holds, and float32 scores of attention.

    Attention computes scores for a block of queries at a time. Compiled programs in float32 were seen to take 0.6 to
    0.75 of this on CPU; in bfloat16, which XLA widens there, 1.3.
    """
    queries = min(tokens, max(BLOCK_QUERIES, math.ceil(tokens / MAX_BLOCKS)))
    scores = SCORE_COPIES * rows * queries * keys * spec.heads // stage.tensor * LOGIT_BYTES
    mlp = (3 if spec.gated_mlp else 2) * spec.mlp_size // stage.tensor
    return rows * tokens * (2 * spec.hidden_size + mlp) * dtype_bytes(dtype) + scores


def sampling_bytes(spec: ModelSpec, stage: StageSpec, rows: int) -> int:
    """Copies of the logits on each device while tokens are chosen; only a stage that samples holds them."""
    if stage.layers[1] != spec.num_layers:
        return 0
    return SAMPLING_COPIES * rows * spec.padded_vocab(stage.tensor) * LOGIT_BYTES


def _distance_bytes(spec: ModelSpec, stage: StageSpec, queries: int, keys: int) -> int:
    """Float32 biases by distance, which all layers of a stack share, once as looked up and once as laid out."""
    return 2 * queries * keys * spec.heads // stage.tensor * LOGIT_BYTES if spec.relative else 0


def _encode_temporaries(spec: ModelSpec, stage: StageSpec, buckets: Buckets, dtype: str) -> int:
    if stage.role == "decode":
        return 0
    rows, tokens = buckets.encode_rows[-1], buckets.encode_tokens[-1]
    whole = activation_bytes(spec, stage, rows, tokens, tokens, dtype)
    if spec.encoder_layers:
        return whole + _distance_bytes(spec, stage, tokens, tokens)
    chunk = activation_bytes(spec, stage, 1, tokens, buckets.cache_tokens[-1], dtype)
    return max(whole, chunk) + sampling_bytes(spec, stage, rows)


def _decode_temporaries(
    spec: ModelSpec, stage: StageSpec, buckets: Buckets, dtype: str, cache_dtype: str, cache_layout: str
) -> int:
    rows = buckets.decode_rows[-1]
    activations = activation_bytes(spec, stage, rows, 1, buckets.cache_tokens[-1], dtype)
    view = view_bytes(spec, stage, buckets, cache_dtype) if cache_layout == "slots" else 0
    view += _distance_bytes(spec, stage, rows, buckets.cache_tokens[-1])
    return view + activations + sampling_bytes(spec, stage, rows)
