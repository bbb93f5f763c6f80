"""From rows to encode calls: which prompts share a dispatch, and in which compiled shapes.

Whole prompts are packed by `solver.plan.packing`. A prompt longer than the largest token bucket, or than the phase's
token budget, goes in chunks, one row a call, into a payload as long as the whole prompt needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exegpt_jax.engine.api import NO_SLOT, NO_SLOT_YET, EncodeCall, EncodeRow
from exegpt_jax.runner.rows import Row, Slots
from solver.plan.buckets import Buckets, round_up
from solver.plan.packing import pack


def encode_calls(
    rows: Iterable[Row], slots: Slots | None, buckets: Buckets, prompt_tokens: int | None, now_s: float
) -> tuple[EncodeCall, ...]:
    """Calls for rows in order of arrival.

    Args:
      rows: whose prompts are not wholly encoded yet; `encoded` and `slot` are advanced.
      slots: complete rows take theirs here; None: they are handed over and get theirs later.
      buckets: compiled shapes.
      prompt_tokens: most tokens to encode; None: all. At least one row moves on.
      now_s: when these calls begin.
    """
    largest = buckets.encode_tokens[-1]
    budget = prompt_tokens
    whole: list[Row] = []
    chunks: list[EncodeCall] = []
    for row in rows:
        if budget is not None and budget <= 0:
            break
        left = len(row.source_ids) - row.encoded
        now = left if budget is None else min(left, budget)
        row.encode_start_s = row.encode_start_s or now_s
        budget = None if budget is None else budget - now
        if row.encoded == 0 and now == left <= largest:
            whole.append(row)
        else:
            # Only the chunked policy, whose chunks vary, has programs for every size of them.
            sizes = buckets.encode_tokens[-1:] if prompt_tokens is None else buckets.encode_tokens
            chunks += _chunk_calls(row, now, slots, sizes, buckets.cache_tokens)
    return (*_whole_calls(whole, slots, buckets), *chunks)


def _whole_calls(rows: Sequence[Row], slots: Slots | None, buckets: Buckets) -> list[EncodeCall]:
    return [
        EncodeCall(
            rows=tuple(_advance(rows[member], len(rows[member].source_ids), slots) for member in packed.members),
            rows_bucket=packed.rows_bucket,
            tokens_bucket=packed.tokens_bucket,
        )
        for packed in pack([len(row.source_ids) for row in rows], buckets)
    ]


def _chunk_calls(
    row: Row, tokens: int, slots: Slots | None, sizes: tuple[int, ...], contexts: tuple[int, ...]
) -> list[EncodeCall]:
    context_bucket = round_up(max(len(row.source_ids), sizes[0]), contexts)
    # Ladders of chunks and of contexts have rungs of their own; no chunk is larger than what it goes into.
    fitting = tuple(size for size in sizes if size <= context_bucket)
    calls = []
    while tokens > 0:
        now = min(tokens, fitting[-1])
        tokens -= now
        calls.append(EncodeCall((_advance(row, now, slots),), 1, round_up(now, fitting), context_bucket))
    return calls


def _advance(row: Row, tokens: int, slots: Slots | None) -> EncodeRow:
    """The row's next tokens; with the last of them it takes its slot."""
    start, row.encoded = row.encoded, row.encoded + tokens
    slot = NO_SLOT
    if row.encoded == len(row.source_ids):
        slot = NO_SLOT_YET if slots is None else slots.take(row)
    return EncodeRow(
        request=row.number,
        token_ids=row.source_ids[start : row.encoded],
        start=start,
        slot=slot,
        sampling=row.request.sampling,
        generated=row.generated,
    )
