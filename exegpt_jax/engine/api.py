"""The words between the Runner and the devices: plain, frozen, serialisable data.

The Runner decides; an Executor does. Once per phase the Runner sends one `PhaseCommand` and gets a `Pending`, from
which it reads the first tokens as soon as the encode part is ready and the decoded block when the whole phase is.
Nothing here holds a device array, so an Executor can stand in another process.

A slot is the number of a row in the key/value cache. A phase runs in this order: drop, release, move, insert, encode
(each call inserts its rows that are complete), decode.

Where encode devices and decode devices are apart, complete rows get no slot yet: their payloads are handed over, and a
later phase inserts them. What either kind of devices does is dispatched as a phase of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

MAX_STOP_IDS = 16
MAX_LOGIT_BIAS = 64
MAX_LOGPROBS = 20
NO_SLOT = -1
NO_SLOT_YET = -2


class EngineError(RuntimeError):
    """A program failed: everything the executor held for live requests is lost until `reset`."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token of one request is chosen; every default is resolved before it gets here.

    Attributes:
      max_tokens: most tokens to generate, the encode phase's first token included.
      min_tokens: stop tokens are barred before that many.
      temperature: 0 is greedy.
      top_k: 0 means all.
      top_p, min_p: nucleus and relative floor, applied after temperature.
      presence_penalty, frequency_penalty: subtract over tokens generated so far.
      repetition_penalty: divides (multiplies negative) scores of tokens seen in prompt or output.
      seed: with the position alone, fixes the row's random stream.
      stop_ids: tokens that end the row, end of sequence included unless ignored.
      logit_bias: (token id, added score) pairs.
      logprobs: how many of the best log-probabilities to return per token; None returns none.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class EncodeRow:
    """One request's tokens in one encode call.

    Attributes:
      request: the runner's number for the request; payloads of unfinished prompts are kept under it.
      token_ids: this chunk of the prompt; a resumed request's earlier output follows its prompt.
      start: position of the chunk's first token.
      slot: row of the cache that receives the finished prompt; NO_SLOT while chunks remain; NO_SLOT_YET where its
        payload is handed over and inserted later.
      generated: how many tokens before the next one are output (resume); they count towards max_tokens and penalties.
      sampling: the request's parameters.
    """

    request: int
    token_ids: tuple[int, ...]
    start: int
    slot: int
    sampling: Sampling
    generated: int = 0


@dataclasses.dataclass(frozen=True)
class EncodeCall:
    """One dispatch of an encode program, shaped by its buckets.

    Attributes:
      rows: at most `rows_bucket` of them.
      rows_bucket, tokens_bucket: compiled shape.
      context_bucket: length of the payload. 0 means the whole prompt is in this call; else the call continues
        (or begins) a chunked prompt, carries exactly one row, and attends to that many positions.
    """

    rows: tuple[EncodeRow, ...]
    rows_bucket: int
    tokens_bucket: int
    context_bucket: int = 0


@dataclasses.dataclass(frozen=True)
class DecodeCall:
    """N_D decode iterations in one dispatch: the lowest `rows_bucket` slots attend to `cache_bucket` positions.

    `part` is the one micro-batch that is meant, whose slots are those of its number modulo their number; None: all.
    """

    iterations: int
    rows_bucket: int
    cache_bucket: int
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class PhaseCommand:
    """Everything one phase does.

    Attributes:
      phase: running number.
      drop: requests whose payloads, unfinished or not inserted, are freed.
      release: slots freed.
      moves: (from, to) slots, for compaction; targets are free after `release`, no slot stands twice.
      encode: calls in order.
      decode: the decode call, if any.
      insert: (request, slot): payloads that were handed over enter slots, which are free after `moves`.
    """

    phase: int
    drop: tuple[int, ...] = ()
    release: tuple[int, ...] = ()
    moves: tuple[tuple[int, int], ...] = ()
    encode: tuple[EncodeCall, ...] = ()
    decode: DecodeCall | None = None
    insert: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Logprobs:
    """Log-probabilities before penalties and temperature.

    Attributes:
      chosen: float32 [..., rows]: of the token that was chosen.
      top_ids: int32 [..., rows, MAX_LOGPROBS]: best first.
      top: float32 [..., rows, MAX_LOGPROBS].
    """

    chosen: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray


@dataclasses.dataclass(frozen=True)
class StageWork:
    """What one of several stages did of a phase: one encode call, or one iteration of one decode micro-batch.

    Attributes:
      stage: index in the pipeline.
      tensor: devices that worked on it.
      micro_batch: which call, or which part of the decode batch.
      iteration: of the phase; 0 for an encode call.
      rows: requests in it.
      tokens: prompt tokens encoded, or tokens generated.
      rows_bucket, tokens_bucket: compiled shape.
      dispatched_s, ready_s: when it was handed to the stage, and when it was seen to be done, on the executor's clock.
    """

    stage: int
    tensor: int
    micro_batch: int
    iteration: int
    rows: int
    tokens: int
    rows_bucket: int
    tokens_bucket: int
    dispatched_s: float
    ready_s: float


@dataclasses.dataclass(frozen=True)
class EncodeResult:
    """First tokens of one encode call.

    Attributes:
      tokens: int32 [rows, width]; rows in the call's order, without padding; meaningless where a row's slot is NO_SLOT.
        Width 0: the first token comes out of the first decode iteration (encoder-decoder models).
      done: bool [rows]: the first token already ended the row.
      logprobs: of those tokens, where any row asked.
      work: of each stage, where there are several.
    """

    tokens: np.ndarray
    done: np.ndarray
    logprobs: Logprobs | None = None
    work: tuple[StageWork, ...] = ()


@dataclasses.dataclass(frozen=True)
class DecodeResult:
    """The block of tokens of one decode phase.

    Attributes:
      tokens: int32 [iterations, rows_bucket, width].
      counts: int32 [iterations, rows_bucket]: valid tokens of each row in each iteration (0 or 1 now).
      done: bool [rows_bucket]: the row holds no running request after the phase.
      logprobs: [iterations, rows_bucket, ...], where any row asked.
      work: of each stage, micro-batch and iteration, where there are several stages or micro-batches.
    """

    tokens: np.ndarray
    counts: np.ndarray
    done: np.ndarray
    logprobs: Logprobs | None = None
    work: tuple[StageWork, ...] = ()


class Pending(Protocol):
    """A phase under way. Both calls block until their part is ready and raise EngineError if it failed."""

    def encoded(self) -> tuple[EncodeResult, ...]: ...

    def decoded(self) -> DecodeResult | None: ...


class Travelling(Pending, Protocol):
    """A phase under way whose payloads are handed over. The first two tell without blocking."""

    def is_encoded(self) -> bool:
        """Whether `encoded` would not block."""
        ...

    def has_arrived(self) -> bool:
        """Whether every payload is on the decode devices."""
        ...

    def arrive(self) -> None:
        """Blocks until then."""
        ...


class Executor(Protocol):
    """Runs phases in order on the devices it owns. Called from the Runner's thread only."""

    def dispatch(self, command: PhaseCommand) -> Pending:
        """Starts a phase without waiting for it. Raises EngineError if a program could not be started."""
        ...

    def reset(self) -> None:
        """Back to an empty cache after an EngineError."""
        ...

    def live_bytes(self) -> int:
        """Bytes of cache that requests hold at present: slots in use times their allocation, plus kept payloads."""
        ...

    def compilations(self) -> int:
        """Programs compiled since it was warm: none, in good order."""
        ...


class ApartExecutor(Executor, Protocol):
    """Encodes and decodes on devices apart; a phase has encode calls or what decode devices do, not both.

    Attributes:
      buffer_bytes: of keys and values that may be under way to any decode device.
    """

    buffer_bytes: int

    def dispatch(self, command: PhaseCommand) -> Travelling: ...

    def payload_bytes(self, rows: int, tokens: int) -> int:
        """Keys and values of a payload on the decode device that gets most of them, until it is inserted."""
        ...
