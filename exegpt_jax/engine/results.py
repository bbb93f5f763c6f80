"""Blocks on their way from the devices to NumPy arrays: started at once, waited for when read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from exegpt_jax.engine.api import DecodeResult, EncodeCall, EncodeResult, EngineError, Logprobs
from exegpt_jax.engine.state import Block

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A block on its way to the host; log-probabilities only where somebody asked."""

    block: Block
    iterations: int
    tells: bool

    @staticmethod
    def of(block: Block, iterations: int, tells: bool) -> Parts:
        for array in block if tells else block[:3]:
            array.copy_to_host_async()
        return Parts(block, iterations, tells)

    def is_ready(self) -> bool:
        """Whether it can be read without waiting."""
        return ready(self.block.tokens)

    def logprobs(self) -> Logprobs | None:
        if not self.tells:
            return None
        chosen, ids, top = (np.asarray(array)[: self.iterations] for array in self.block[3:])
        return Logprobs(chosen, ids, top)


def ready(arrays: object) -> bool:
    """Whether every array of a tree is computed, and where it should be; does not wait."""
    return all(array.is_ready() for array in jax.tree.leaves(arrays))


def encode_result(call: EncodeCall, parts: Parts) -> EncodeResult:
    rows = len(call.rows)
    logprobs = parts.logprobs()
    if logprobs is not None:
        logprobs = Logprobs(logprobs.chosen[0, :rows], logprobs.top_ids[0, :rows], logprobs.top[0, :rows])
    return EncodeResult(np.asarray(parts.block.tokens)[0, :rows], np.asarray(parts.block.done)[:rows], logprobs)


def decode_result(parts: Parts) -> DecodeResult:
    tokens, counts, done = (np.asarray(array) for array in parts.block[:3])
    return DecodeResult(tokens[: parts.iterations], counts[: parts.iterations], done, parts.logprobs())


def tells(call: EncodeCall) -> bool:
    return any(row.sampling.logprobs is not None for row in call.rows)


def guarded(work: Callable[[], _Result]) -> _Result:
    """XLA's errors as EngineError; running out of memory says what to change."""
    try:
        return work()
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in text:
            text = f"out of memory: lower --max_rows, --cache_tokens or --memory_fraction ({text})"
        raise EngineError(text) from error
