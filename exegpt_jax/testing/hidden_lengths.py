"""Answers of a given length that the Runner does not know: what every benchmark of schedules needs.

Random weights never end an answer, and a Runner that is told the length could cheat. This Executor passes every phase
on, but lowers `max_tokens` on the way to the devices; the Runner only sees that a row is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

from exegpt_jax.engine.api import ApartExecutor, EncodeRow, Executor, Pending, PhaseCommand


class HiddenLengths:
    """An Executor around another, of either kind.

    Args:
      executor: does the work; kept under this name.
      output_tokens: how many tokens the answer to an encode row has; asked with the row's first chunk.
    """

    def __init__(self, executor: Executor, output_tokens: Callable[[EncodeRow], int]) -> None:
        self.executor = executor
        self._output_tokens = output_tokens
        self._lengths: dict[int, int] = {}

    def around(self, executor: Executor) -> HiddenLengths:
        """The same lengths around an executor that takes over from this one's."""
        other = HiddenLengths(executor, self._output_tokens)
        other._lengths = self._lengths
        return other

    def dispatch(self, command: PhaseCommand) -> Pending:
        encode = tuple(
            dataclasses.replace(call, rows=tuple(self._shorten(row) for row in call.rows)) for call in command.encode
        )
        return self.executor.dispatch(dataclasses.replace(command, encode=encode))

    @property
    def buffer_bytes(self) -> int:
        return cast(ApartExecutor, self.executor).buffer_bytes

    def payload_bytes(self, rows: int, tokens: int) -> int:
        return cast(ApartExecutor, self.executor).payload_bytes(rows, tokens)

    def reset(self) -> None:
        self._lengths.clear()
        self.executor.reset()

    def live_bytes(self) -> int:
        return self.executor.live_bytes()

    def compilations(self) -> int:
        return self.executor.compilations()

    def _shorten(self, row: EncodeRow) -> EncodeRow:
        if row.start == 0:
            self._lengths[row.request] = self._output_tokens(row)
        length = min(self._lengths[row.request], row.sampling.max_tokens)
        sampling = dataclasses.replace(row.sampling, max_tokens=length, min_tokens=min(row.sampling.min_tokens, length))
        return dataclasses.replace(row, sampling=sampling)
