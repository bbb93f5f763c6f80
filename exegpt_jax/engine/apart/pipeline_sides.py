"""The two sides of `exegpt_jax.engine.apart.sides` on several stages each, or in several micro-batches.

Where sides are apart, each decode micro-batch is dispatched by itself, one iteration at a time, and none waits for
another: while the tokens of one come back, the others are on their way through the stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from exegpt_jax.engine.apart.sides import Encoded
from exegpt_jax.engine.api import NO_SLOT, DecodeCall, DecodeResult, EncodeCall, EncodeRow
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.pipeline.pipeline import EncodePass, Pipeline
from exegpt_jax.engine.pipeline.rounds import DecodeRounds
from exegpt_jax.engine.pipeline.slots import PipelineSlots
from exegpt_jax.engine.state import Payload
from exegpt_jax.sharding.stage import Stage
from solver.plan.memory import cache_row_bytes, payload_bytes


@dataclasses.dataclass
class _Prompt:
    """A prompt of which chunks are still to come: its keys and values on every stage."""

    layers: list[Layers]
    tokens: list[int]
    context: int


class PipelineEncodeSide:
    """Prompts, whole or chunk by chunk, through the stages."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._prompts: dict[int, _Prompt] = {}

    def encode(self, call: EncodeCall) -> Encoded:
        if not call.context_bucket:
            return _encoded(self._pipeline.encode(call, None, ()), call.tokens_bucket)
        (row,) = call.rows
        prompt = self._prompts.pop(row.request, None)
        held, before = (None, []) if prompt is None else (prompt.layers, prompt.tokens)
        done = self._pipeline.encode(call, held, before)
        if row.slot != NO_SLOT:
            return _encoded(done, call.context_bucket)
        layers = [payload.layers for payload in done.payloads]
        self._prompts[row.request] = _Prompt(layers, [*before, *row.token_ids], call.context_bucket)
        return _encoded(dataclasses.replace(done, payloads=()), call.context_bucket)

    def drop(self, requests: Iterable[int]) -> None:
        for request in requests:
            self._prompts.pop(request, None)

    def live_bytes(self) -> int:
        """Bytes on a device of the fullest stage, of prompts in progress."""
        prompts, dtype = tuple(self._prompts.values()), self._pipeline.plan.cache_dtype

        def held(stage: Stage) -> int:
            return sum(payload_bytes(stage.spec, stage.stage, 1, each.context, dtype) for each in prompts)

        return max(held(engine.stage) for engine in self._pipeline.engines)


def _encoded(done: EncodePass, length: int) -> Encoded:
    return Encoded(done.block, done.payloads, length, done.marks, done.x)


class PipelineDecodeSide:
    """The cache's slots, over the stages and in micro-batches."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._slots = PipelineSlots(pipeline)

    def forget(self) -> None:
        """Frees the cache, before a new one is made."""
        self._slots.forget()
        self._pipeline.forget()

    def release(self, slots: Sequence[int]) -> None:
        self._slots.release(slots)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        self._slots.move(moves)

    def insert(self, payloads: Sequence[Payload], length: int, rows: Sequence[EncodeRow], slots: Sequence[int]) -> None:
        """Puts the payloads' first rows into slots; a slot beyond the cache leaves its row out."""
        self._slots.insert(payloads, length, rows, slots)

    def decode(self, call: DecodeCall) -> Callable[[], DecodeResult]:
        """One iteration of the call's micro-batch, or of all; what it returns waits for the tokens of these alone."""
        rounds = DecodeRounds(self._pipeline, self._slots, call)
        rounds.settle()
        return rounds.result

    def live_bytes(self) -> int:
        """Bytes on a device of the fullest stage, of slots in use."""
        plan, rows = self._pipeline.plan, len(self._slots.used)

        def held(stage: Stage) -> int:
            return rows * cache_row_bytes(stage.spec, stage.stage, plan.cache_tokens, plan.cache_dtype)

        return max(held(engine.stage) for engine in self._pipeline.engines)
