"""A phase under way where encode and decode are apart: what is encoded, what has arrived, what was decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from exegpt_jax.engine.api import DecodeResult, EncodeCall, EncodeResult
from exegpt_jax.engine.pipeline.pipeline import Pipeline
from exegpt_jax.engine.results import Parts, encode_result, guarded, ready
from exegpt_jax.engine.state import Payload
from exegpt_jax.engine.windows import Mark


@dataclasses.dataclass(frozen=True)
class Call:
    """An encode call under way.

    Attributes:
      index: of the call in its phase.
      call, parts: what was asked, and its first tokens; None where decode stages bring them.
      marks: when each stage was done.
      there: on decode stages; empty while chunks remain.
    """

    index: int
    call: EncodeCall
    parts: Parts | None
    marks: tuple[Mark, ...]
    there: tuple[Payload, ...] | Array


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase under way."""

    encoders: Pipeline
    calls: tuple[Call, ...]
    decode: Callable[[], DecodeResult] | None

    def is_encoded(self) -> bool:
        self.encoders.windows.look()
        return all(each.marks[-1].ready_s is not None for each in self.calls)

    def has_arrived(self) -> bool:
        return ready([each.there for each in self.calls])

    def arrive(self) -> None:
        guarded(lambda: jax.block_until_ready([each.there for each in self.calls]))

    def encoded(self) -> tuple[EncodeResult, ...]:
        return guarded(lambda: tuple(self._first_tokens(each) for each in self.calls))

    def _first_tokens(self, each: Call) -> EncodeResult:
        self.encoders.windows.wait_for(each.marks[-1])
        rows, tokens = len(each.call.rows), sum(len(row.token_ids) for row in each.call.rows)
        shape = each.call.rows_bucket, each.call.tokens_bucket
        work = self.encoders.work(each.marks, each.index, 0, rows, tokens, shape)
        if each.parts is None:
            return EncodeResult(np.zeros((rows, 0), np.int32), np.zeros(rows, np.bool_), work=tuple(work))
        return dataclasses.replace(encode_result(each.call, each.parts), work=tuple(work))

    def decoded(self) -> DecodeResult | None:
        return None if self.decode is None else guarded(self.decode)
