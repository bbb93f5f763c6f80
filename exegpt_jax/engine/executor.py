"""The Executor of this process: phases as `PhaseCommand`s in, results as NumPy arrays out.

Programs are dispatched without waiting; results start on their way to the host at once and are waited for when read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from exegpt_jax.engine import compiling
from exegpt_jax.engine.apart.sides import DecodeSide, EncodeSide
from exegpt_jax.engine.api import DecodeResult, EncodeCall, EncodeResult, Pending, PhaseCommand
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.results import Parts, encode_result, guarded, tells
from exegpt_jax.engine.state import Block


class LocalExecutor:
    """Runs phases on a warm Engine, which does both sides' work in turns."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        compiling.listen()
        self._compiled_before = compiling.compilations()
        self._encodes, self._decodes = EncodeSide(engine), DecodeSide(engine)

    def reset(self) -> None:
        """Back to an empty cache; the old one's memory is free before the new one is taken."""
        self._decodes.forget()
        self._encodes, self._decodes = EncodeSide(self.engine), DecodeSide(self.engine)

    def go_on(self, engine: Engine, resize: Program | None) -> None:
        """Another plan's programs on the same stage, with the rows that are here; no prompt may be half encoded."""
        self._decodes.go_on(engine, resize)
        self._encodes, self.engine = EncodeSide(engine), engine

    def start_over(self, engine: Engine) -> None:
        """Another plan's programs on the same stage, with an empty cache; the old one is freed first."""
        self._decodes.forget()
        self._decodes = DecodeSide(engine)
        self._encodes, self.engine = EncodeSide(engine), engine

    def live_bytes(self) -> int:
        """Bytes per device of the slots in use and of prompts in progress, by the planner's own accounting."""
        return self._encodes.live_bytes() + self._decodes.live_bytes()

    def compilations(self) -> int:
        return compiling.compilations() - self._compiled_before

    def dispatch(self, command: PhaseCommand) -> Pending:
        return guarded(lambda: self._dispatch(command))

    def _dispatch(self, command: PhaseCommand) -> Pending:
        self._encodes.drop(command.drop)
        self._decodes.release(command.release)
        self._decodes.move(command.moves)
        encoded = tuple((call, self._encode(call)) for call in command.encode)
        decoded = None if command.decode is None else self._decodes.decode(command.decode)
        return _Phase(tuple((call, Parts.of(block, 1, tells(call))) for call, block in encoded), decoded)

    def _encode(self, call: EncodeCall) -> Block:
        encoded = self._encodes.encode(call)
        if encoded.payloads:
            self._decodes.insert(encoded.payloads, encoded.length, call.rows, [row.slot for row in call.rows])
        assert encoded.block is not None
        return encoded.block


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A phase under way."""

    encodes: tuple[tuple[EncodeCall, Parts], ...]
    decode: Callable[[], DecodeResult] | None

    def encoded(self) -> tuple[EncodeResult, ...]:
        return guarded(lambda: tuple(encode_result(call, parts) for call, parts in self.encodes))

    def decoded(self) -> DecodeResult | None:
        return None if self.decode is None else guarded(self.decode)
