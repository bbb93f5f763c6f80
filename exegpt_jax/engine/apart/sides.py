"""What an executor does on its devices: prompts that are being encoded, and slots that decode.

`EncodeSide` and `DecodeSide` work on one engine or on one each. The Runner's words go in; nothing is waited for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from jax import Array

from exegpt_jax.engine.api import NO_SLOT, DecodeCall, DecodeResult, EncodeCall, EncodeRow
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.results import Parts, decode_result
from exegpt_jax.engine.state import Block, Payload, State
from exegpt_jax.engine.windows import Mark
from solver.plan.memory import cache_row_bytes, payload_bytes


@dataclasses.dataclass
class _Prompt:
    """A prompt of which chunks are still to come."""

    layers: Layers
    tokens: list[int]
    context: int


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A call under way.

    Attributes:
      block: first tokens; None where the devices that decode bring them.
      payloads: complete prompts, of each stage; empty while chunks of the one prompt remain, and where it is x.
      length: of the payloads, in positions.
      marks: when each stage of a pipeline was done; empty where there is none.
      x: an encoder's activations, where the devices that decode make payloads of them.
    """

    block: Block | None
    payloads: tuple[Payload, ...]
    length: int
    marks: tuple[Mark, ...] = ()
    x: Array | None = None


class EncodeSide:
    """Prompts, whole or chunk by chunk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prompts: dict[int, _Prompt] = {}

    def encode(self, call: EncodeCall) -> Encoded:
        if not call.context_bucket:
            payload, block = self._engine.encode(call)
            return Encoded(block, (payload,), call.tokens_bucket)
        (row,) = call.rows
        prompt = self._prompts.pop(row.request, None)
        before = [] if prompt is None else prompt.tokens
        payload, block = self._engine.encode_chunk(call, None if prompt is None else prompt.layers, before)
        if row.slot != NO_SLOT:
            return Encoded(block, (payload,), call.context_bucket)
        self._prompts[row.request] = _Prompt(payload.layers, [*before, *row.token_ids], call.context_bucket)
        return Encoded(block, (), call.context_bucket)

    def drop(self, requests: Iterable[int]) -> None:
        for request in requests:
            self._prompts.pop(request, None)

    def live_bytes(self) -> int:
        """Bytes per device of prompts in progress, by the planner's own accounting."""
        spec, stage, dtype = self._engine.stage.spec, self._engine.stage.stage, self._engine.plan.cache_dtype
        return sum(payload_bytes(spec, stage, 1, each.context, dtype) for each in tuple(self._prompts.values()))


class DecodeSide:
    """The cache's slots."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._used: set[int] = set()
        # Slots whose request asked for log-probabilities: nobody else's are copied to the host.
        self._telling: set[int] = set()
        self._state: State | None = engine.initial_state()

    def forget(self) -> None:
        """Frees the cache, before a new one is made."""
        self._state = None

    def go_on(self, engine: Engine, resize: Program | None) -> None:
        """The same rows under the programs of another engine on the same stage, whose state `resize` makes."""
        if resize is not None:
            self._state = State(*resize.run(*self.state))
        self._engine = engine

    @property
    def state(self) -> State:
        assert self._state is not None
        return self._state

    def release(self, slots: Sequence[int]) -> None:
        if slots:
            self._state = self._engine.release(self.state, slots)
            self._used.difference_update(slots)
            self._telling.difference_update(slots)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        if moves:
            self._state = self._engine.move(self.state, moves)
        for source, target in moves:
            for slots in (self._used, self._telling):
                if source in slots:
                    slots.remove(source)
                    slots.add(target)

    def insert(self, payloads: Sequence[Payload], length: int, rows: Sequence[EncodeRow], slots: Sequence[int]) -> None:
        """Puts the one payload's first rows into slots; a slot beyond the cache leaves its row out."""
        (payload,) = payloads
        self._state = self._engine.insert(self.state, payload, slots, length)
        for row, slot in zip(rows, slots, strict=True):
            if slot < self._engine.plan.schedule.max_rows:
                self._used.add(slot)
                if row.sampling.logprobs is not None:
                    self._telling.add(slot)

    def decode(self, call: DecodeCall) -> Callable[[], DecodeResult]:
        """Starts the iterations; what it returns waits for their tokens."""
        self._state, block = self._engine.decode(self.state, call.iterations, call.rows_bucket, call.cache_bucket)
        parts = Parts.of(block, call.iterations, any(slot < call.rows_bucket for slot in self._telling))
        return lambda: decode_result(parts)

    def live_bytes(self) -> int:
        """Bytes per device of the slots in use, by the planner's own accounting."""
        spec, stage, plan = self._engine.stage.spec, self._engine.stage.stage, self._engine.plan
        return len(self._used) * cache_row_bytes(spec, stage, plan.cache_tokens, plan.cache_dtype)
