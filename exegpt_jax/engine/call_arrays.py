"""Encode calls as the host arrays that programs take, padded to their buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exegpt_jax.engine.api import EncodeCall
from exegpt_jax.engine.sampling import SamplingRows, pack


class PromptArrays(NamedTuple):
    """Whole prompts.

    Attributes:
      tokens: int32 [rows, tokens].
      lengths, generated: int32 [rows]: of each prompt; of its end, how many are output. 0 in rows that pad.
      wanted: how to sample.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    generated: np.ndarray
    wanted: SamplingRows


class ChunkArrays(NamedTuple):
    """The next chunk of one prompt.

    Attributes:
      tokens: int32 [1, tokens].
      start: int32 [1]: position of the first.
      history: int32 [1, context]: the prompt up to the chunk's end.
      lengths, generated, wanted: as in `PromptArrays`, up to the chunk's end.
    """

    tokens: np.ndarray
    start: np.ndarray
    history: np.ndarray
    lengths: np.ndarray
    generated: np.ndarray
    wanted: SamplingRows


def whole_prompts(call: EncodeCall) -> PromptArrays:
    """The arrays of a call of whole prompts."""
    rows, bucket = call.rows, call.rows_bucket
    tokens = np.zeros((bucket, call.tokens_bucket), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row.token_ids)] = row.token_ids
    return PromptArrays(
        tokens=tokens,
        lengths=ints([len(row.token_ids) for row in rows], bucket, 0),
        generated=ints([row.generated for row in rows], bucket, 0),
        wanted=pack([row.sampling for row in rows], bucket),
    )


def chunk_of_prompt(call: EncodeCall, before: Sequence[int]) -> ChunkArrays:
    """The arrays of a call of one chunk; `before` are the prompt's tokens that came first."""
    (row,) = call.rows
    tokens = np.zeros((1, call.tokens_bucket), np.int32)
    tokens[0, : len(row.token_ids)] = row.token_ids
    history = np.zeros((1, call.context_bucket), np.int32)
    length = row.start + len(row.token_ids)
    history[0, :length] = [*before, *row.token_ids]
    return ChunkArrays(
        tokens=tokens,
        start=ints([row.start], 1, 0),
        history=history,
        lengths=ints([length], 1, 0),
        generated=ints([row.generated], 1, 0),
        wanted=pack([row.sampling], 1),
    )


def ints(values: Sequence[int], size: int, padding: int) -> np.ndarray:
    """int32 [size], the values first."""
    padded = np.full(size, padding, np.int32)
    padded[: len(values)] = values
    return padded
