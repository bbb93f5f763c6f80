"""From a phase's results to events: which tokens belong to which request, and who has ended, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from exegpt_jax.engine.api import NO_SLOT, DecodeResult, EncodeCall, EncodeResult, EncodeRow, Logprobs
from exegpt_jax.runner.events import Finished, Reason, Times, Tokens
from exegpt_jax.runner.rows import Row

# An index of a result's leading axes: rows of an encode call, or (iterations, slot) of a decode block.
Where = slice | tuple[np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one part of a phase brought.

    Attributes:
      events: tokens, one event per row that got any.
      ended: rows that are done, why, and the stop token that ended them.
      rows: that got tokens.
      tokens: over all rows.
      iterations: decode iterations in which any row got a token.
    """

    events: tuple[Tokens, ...]
    ended: tuple[tuple[Row, Reason, int | None], ...]
    rows: int
    tokens: int
    iterations: int = 0


def first_tokens(
    calls: Sequence[EncodeCall], results: Sequence[EncodeResult], slots: Mapping[int, Row], now_s: float
) -> Outcome:
    """The encode part: one token for each row whose prompt is complete, unless the decoder brings that."""
    return first_tokens_of(calls, results, lambda row: slots[row.slot], now_s)


def first_tokens_of(
    calls: Sequence[EncodeCall],
    results: Sequence[EncodeResult],
    find: Callable[[EncodeRow], Row | None],
    now_s: float,
) -> Outcome:
    """The same, where `find` knows whose row it is; None if it has ended in the meantime."""
    events, ended = [], []
    for call, result in zip(calls, results, strict=True):
        for index, encode_row in enumerate(call.rows):
            row = None if encode_row.slot == NO_SLOT else find(encode_row)
            if row is None or not result.tokens.shape[1]:
                continue
            logprobs = _logprobs_of(row, result.logprobs, slice(index, index + 1))
            events.append(_tokens(row, (int(result.tokens[index, 0]),), logprobs, now_s))
            if result.done[index]:
                ended.append(_ending(row, events[-1].token_ids[-1]))
    return Outcome(tuple(events), tuple(ended), len(events), len(events))


def decoded_tokens(result: DecodeResult, slots: Mapping[int, Row], now_s: float) -> Outcome:
    """The decode part: each row's tokens of all iterations."""
    events, ended = [], []
    for slot, row in slots.items():
        if slot >= result.counts.shape[1]:
            continue
        valid = result.counts[:, slot] > 0
        tokens = tuple(result.tokens[valid, slot, 0].tolist())
        if tokens:
            events.append(_tokens(row, tokens, _logprobs_of(row, result.logprobs, (valid, slot)), now_s))
        if result.done[slot]:
            ended.append(_ending(row, tokens[-1] if tokens else None))
    return Outcome(
        events=tuple(events),
        ended=tuple(ended),
        rows=len(events),
        tokens=sum(len(event.token_ids) for event in events),
        iterations=int((result.counts > 0).any(axis=1).sum()),
    )


def finished(row: Row, reason: Reason, stop_token: int | None, detail: str, now_s: float) -> Finished:
    """A request's last event; `now_s` is its last token's time where it ended well."""
    last_s = now_s if reason in ("stop", "length") else row.last_token_s
    return Finished(
        id=row.request.id,
        reason=reason,
        stop_token=stop_token,
        detail=detail,
        prompt_tokens=len(row.request.prompt_ids),
        completion_tokens=row.generated,
        times=Times(row.arrival_s, row.encode_start_s, row.first_token_s, last_s),
    )


def _tokens(row: Row, token_ids: tuple[int, ...], logprobs: Logprobs | None, now_s: float) -> Tokens:
    row.generated += len(token_ids)
    row.first_token_s = row.first_token_s or now_s
    row.last_token_s = now_s
    return Tokens(row.request.id, token_ids, logprobs, row.encode_start_s)


def _ending(row: Row, last_token: int | None) -> tuple[Row, Reason, int | None]:
    """Why the devices ended a row: a stop token, its length, or (lengths hidden under test) an end they made up."""
    if last_token is not None and last_token in row.request.sampling.stop_ids:
        return row, "stop", last_token
    return row, "length" if row.remaining_tokens <= 0 else "stop", None


def _logprobs_of(row: Row, logprobs: Logprobs | None, where: Where) -> Logprobs | None:
    if logprobs is None or row.request.sampling.logprobs is None:
        return None
    return Logprobs(logprobs.chosen[where], logprobs.top_ids[where], logprobs.top[where])
