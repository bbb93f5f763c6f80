"""The Executor of this process: phases as `PhaseCommand`s in, results as NumPy arrays out.

It owns the engine's state and the payloads of prompts that are being encoded in chunks. Programs are dispatched without
waiting; results start on their way to the host at once and are waited for when read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from exegpt_jax.engine import compiling
from exegpt_jax.engine.api import (
    NO_SLOT,
    DecodeResult,
    EncodeCall,
    EncodeResult,
    EngineError,
    Logprobs,
    Pending,
    PhaseCommand,
)
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.state import Block, State
from solver.plan.memory import cache_row_bytes, payload_bytes

_Result = TypeVar("_Result")


@dataclasses.dataclass
class _Prompt:
    """A prompt of which chunks are still to come."""

    layers: Layers
    tokens: list[int]
    context: int


class LocalExecutor:
    """Runs phases on a warm Engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        compiling.listen()
        self._compiled_before = compiling.compilations()
        self.reset()

    def reset(self) -> None:
        """Back to an empty cache; the old one's memory is free before the new one is taken."""
        self._state: State | None = None
        self._prompts: dict[int, _Prompt] = {}
        self._used: set[int] = set()
        # Slots whose request asked for log-probabilities: nobody else's are copied to the host.
        self._telling: set[int] = set()
        self._state = self.engine.initial_state()

    def live_bytes(self) -> int:
        """Bytes per device of the slots in use and of prompts in progress, by the planner's own accounting."""
        spec, stage, plan = self.engine.stage.spec, self.engine.stage.stage, self.engine.plan
        slots = len(self._used) * cache_row_bytes(spec, stage, plan.cache_tokens, plan.cache_dtype)
        prompts = tuple(self._prompts.values())
        return slots + sum(payload_bytes(spec, stage, 1, prompt.context, plan.cache_dtype) for prompt in prompts)

    def compilations(self) -> int:
        return compiling.compilations() - self._compiled_before

    def dispatch(self, command: PhaseCommand) -> Pending:
        return _guarded(lambda: self._dispatch(command))

    def _dispatch(self, command: PhaseCommand) -> Pending:
        engine = self.engine
        assert self._state is not None
        for request in command.drop:
            self._prompts.pop(request, None)
        if command.release:
            self._state = engine.release(self._state, command.release)
            self._used.difference_update(command.release)
            self._telling.difference_update(command.release)
        if command.moves:
            self._state = engine.move(self._state, command.moves)
            for source, target in command.moves:
                for slots in (self._used, self._telling):
                    if source in slots:
                        slots.remove(source)
                        slots.add(target)
        encoded = tuple((call, self._encode(call)) for call in command.encode)
        decoded = None
        if command.decode is not None:
            call = command.decode
            self._state, block = engine.decode(self._state, call.iterations, call.rows_bucket, call.cache_bucket)
            tells = any(slot < call.rows_bucket for slot in self._telling)
            decoded = _Parts.of(block, call.iterations, tells)
        return _Phase(tuple((call, _Parts.of(block, 1, _tells(call))) for call, block in encoded), decoded)

    def _encode(self, call: EncodeCall) -> Block:
        engine = self.engine
        if call.context_bucket:
            (row,) = call.rows
            prompt = self._prompts.pop(row.request, None)
            before = [] if prompt is None else prompt.tokens
            payload, block = engine.encode_chunk(call, None if prompt is None else prompt.layers, before)
            if row.slot == NO_SLOT:
                tokens = [*before, *row.token_ids]
                self._prompts[row.request] = _Prompt(payload.layers, tokens, call.context_bucket)
                return block
            length = call.context_bucket
        else:
            payload, block = engine.encode(call)
            length = call.tokens_bucket
        assert self._state is not None
        self._state = engine.insert(self._state, payload, [row.slot for row in call.rows], length)
        self._used.update(row.slot for row in call.rows)
        self._telling.update(row.slot for row in call.rows if row.sampling.logprobs is not None)
        return block


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A block on its way to the host; log-probabilities only where somebody asked."""

    block: Block
    iterations: int
    tells: bool

    @staticmethod
    def of(block: Block, iterations: int, tells: bool) -> _Parts:
        for array in block if tells else block[:3]:
            array.copy_to_host_async()
        return _Parts(block, iterations, tells)

    def logprobs(self) -> Logprobs | None:
        if not self.tells:
            return None
        chosen, ids, top = (np.asarray(array)[: self.iterations] for array in self.block[3:])
        return Logprobs(chosen, ids, top)


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A phase under way."""

    encodes: tuple[tuple[EncodeCall, _Parts], ...]
    decode: _Parts | None

    def encoded(self) -> tuple[EncodeResult, ...]:
        return _guarded(lambda: tuple(_first(call, parts) for call, parts in self.encodes))

    def decoded(self) -> DecodeResult | None:
        parts = self.decode
        return None if parts is None else _guarded(lambda: _whole(parts))


def _first(call: EncodeCall, parts: _Parts) -> EncodeResult:
    rows = len(call.rows)
    logprobs = parts.logprobs()
    if logprobs is not None:
        logprobs = Logprobs(logprobs.chosen[0, :rows], logprobs.top_ids[0, :rows], logprobs.top[0, :rows])
    return EncodeResult(np.asarray(parts.block.tokens)[0, :rows], np.asarray(parts.block.done)[:rows], logprobs)


def _whole(parts: _Parts) -> DecodeResult:
    tokens, counts, done = (np.asarray(array) for array in parts.block[:3])
    return DecodeResult(tokens[: parts.iterations], counts[: parts.iterations], done, parts.logprobs())


def _tells(call: EncodeCall) -> bool:
    return any(row.sampling.logprobs is not None for row in call.rows)


def _guarded(work: Callable[[], _Result]) -> _Result:
    """XLA's errors as EngineError; running out of memory says what to change."""
    try:
        return work()
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in text:
            text = f"out of memory: lower --max_rows, --cache_tokens or --memory_fraction ({text})"
        raise EngineError(text) from error
