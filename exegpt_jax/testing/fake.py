"""An Executor whose arithmetic a person can do by hand, for everything that is not numerics.

The next token is (31 x sum of all tokens so far + 7 x their count + 1) mod the vocabulary, prompt and output alike: a
lost, doubled or exchanged token anywhere changes all that follow, and a resumed request goes on as if nothing had
happened. It also refuses what no Runner may send: unknown shapes, slots taken twice, moves onto live rows, a second
thread.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from exegpt_jax.engine.api import (
    NO_SLOT,
    NO_SLOT_YET,
    DecodeCall,
    DecodeResult,
    EncodeCall,
    EncodeResult,
    EncodeRow,
    EngineError,
    PhaseCommand,
    Sampling,
    Travelling,
)
from solver.plan.micro_batches import decode_parts, place_of
from solver.plan.plan import Plan

_BYTES_PER_TOKEN = 1


def fake_cache_bytes(plan: Plan) -> int:
    """What the cache of a plan takes, as this executor counts."""
    return plan.schedule.max_rows * plan.cache_tokens * _BYTES_PER_TOKEN


def next_token(tokens: Sequence[int], vocab_size: int) -> int:
    """The arithmetic, on all tokens so far."""
    return (31 * sum(tokens) + 7 * len(tokens) + 1) % vocab_size


def answer(prompt_ids: Sequence[int], sampling: Sampling, vocab_size: int) -> tuple[int, ...]:
    """Every output token of a request: the oracle that tests compare with."""
    tokens = list(prompt_ids)
    while True:
        tokens.append(next_token(tokens, vocab_size))
        if _ends(tokens, len(tokens) - len(prompt_ids), sampling):
            return tuple(tokens[len(prompt_ids) :])


def _ends(tokens: Sequence[int], generated: int, sampling: Sampling) -> bool:
    stopped = tokens[-1] in sampling.stop_ids and generated > sampling.min_tokens
    return stopped or generated >= sampling.max_tokens


@dataclasses.dataclass
class _Row:
    tokens: list[int]
    generated: int
    sampling: Sampling
    done: bool = False

    def step(self, vocab_size: int) -> int:
        token = next_token(self.tokens, vocab_size)
        self.tokens.append(token)
        self.generated += 1
        self.done = _ends(self.tokens, self.generated, self.sampling)
        return token


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A phase that was computed at once; reading it takes the time that a device would."""

    encode_results: tuple[EncodeResult, ...]
    decode_result: DecodeResult | None
    encode_s: float
    decode_s: float
    late: Callable[[], bool]

    def is_encoded(self) -> bool:
        return not self.late()

    def has_arrived(self) -> bool:
        return not self.late()

    def arrive(self) -> None:
        pass

    def encoded(self) -> tuple[EncodeResult, ...]:
        time.sleep(self.encode_s)
        return self.encode_results

    def decoded(self) -> DecodeResult | None:
        time.sleep(self.decode_s)
        return self.decode_result


class FakeExecutor:
    """Runs phases in plain Python.

    Args:
      plan: its buckets and rows are enforced.
      vocab_size: tokens are below it.
      step_s: time of one decode iteration.
      encode_s: time of one encode call.
      fails: phases for which it returns True raise EngineError.
      late: what is asked about while it returns True has not been encoded, or has not arrived, yet.
      buffer_bytes: that may be under way between sides that are apart.
    """

    def __init__(
        self,
        plan: Plan,
        vocab_size: int,
        *,
        step_s: float = 0.0,
        encode_s: float = 0.0,
        fails: Callable[[PhaseCommand], bool] = lambda command: False,
        late: Callable[[], bool] = lambda: False,
        buffer_bytes: int = 2**62,
    ) -> None:
        self._plan = plan
        self._late = late
        self.buffer_bytes = buffer_bytes
        self._vocab_size = vocab_size
        self._step_s = step_s
        self._encode_s = encode_s
        self._fails = fails
        self._thread: int | None = None
        self.reset()

    def reset(self) -> None:
        self._slots: dict[int, _Row] = {}
        self._payloads: dict[int, _Row] = {}
        # Complete prompts that have no slot yet, and the batch of each with the bytes that it holds.
        self._parcels: dict[int, tuple[_Row, int, int]] = {}

    def continued(self, plan: Plan) -> FakeExecutor:
        """Another executor, of another plan, that goes on with the same rows in their slots."""
        self._require(all(slot < plan.schedule.max_rows for slot in self._slots), "carries a slot beyond the new rows")
        self._require(not self._payloads, "carries an unfinished prompt")
        other = FakeExecutor(plan, self._vocab_size, step_s=self._step_s, encode_s=self._encode_s, fails=self._fails)
        other._slots, self._slots = self._slots, {}
        return other

    def live_bytes(self) -> int:
        payload_tokens = sum(len(row.tokens) for row in self._payloads.values())
        slots_bytes = (len(self._slots) * self._plan.cache_tokens + payload_tokens) * _BYTES_PER_TOKEN
        return slots_bytes + sum(self.under_way_bytes().values())

    def under_way_bytes(self) -> dict[int, int]:
        """Of each batch of which a row has not entered its slot."""
        return {phase: held for _, phase, held in self._parcels.values()}

    def payload_bytes(self, rows: int, tokens: int) -> int:
        return rows * tokens * _BYTES_PER_TOKEN

    def compilations(self) -> int:
        return 0

    def dispatch(self, command: PhaseCommand) -> Travelling:
        self._require(self._thread in (None, threading.get_ident()), "dispatched from a second thread")
        self._thread = threading.get_ident()
        if self._fails(command):
            raise EngineError(f"phase {command.phase} fails, as asked")
        for request in command.drop:
            unfinished, complete = self._payloads.pop(request, None), self._parcels.pop(request, None)
            self._require(unfinished is not None or complete is not None, f"drops unknown payload {request}")
        for slot in command.release:
            self._require(self._slots.pop(slot, None) is not None, f"releases free slot {slot}")
        for source, target in command.moves:
            self._require(target not in self._slots and target < self._plan.schedule.max_rows, f"moves onto {target}")
            self._slots[target] = self._slots.pop(source)
        for request, slot in command.insert:
            self._require(request in self._parcels, f"inserts unknown payload {request}")
            self._require(slot not in self._slots and slot < self._plan.schedule.max_rows, f"inserts into {slot}")
            self._slots[slot] = self._parcels.pop(request)[0]
            self._require(not self._slots[slot].done, f"inserts request {request}, which has ended")
        encoded = tuple(self._encode(call, command) for call in command.encode)
        under_way = self.under_way_bytes()
        self._require(len(under_way) <= 1 or sum(under_way.values()) <= self.buffer_bytes, "too many bytes under way")
        decoded = None if command.decode is None else self._decode(command.decode)
        iterations = 0 if decoded is None else int(decoded.counts.any(axis=1).sum())
        return _Ready(encoded, decoded, self._encode_s * len(encoded), self._step_s * iterations, self._late)

    def _encode(self, call: EncodeCall, command: PhaseCommand) -> EncodeResult:
        buckets = self._plan.buckets
        self._require(call.rows_bucket in (1, *buckets.encode_rows), f"no program for {call.rows_bucket} rows")
        self._require(call.tokens_bucket in buckets.encode_tokens, f"no program for {call.tokens_bucket} tokens")
        self._require(call.context_bucket in (0, *buckets.cache_tokens), f"no payload of {call.context_bucket}")
        self._require(0 < len(call.rows) <= call.rows_bucket, "rows do not fit their bucket")
        if call.context_bucket:
            self._require(call.tokens_bucket <= call.context_bucket, "a chunk is larger than its payload")
        first, done = [], []
        for encode_row in call.rows:
            row = self._take_prompt(call, encode_row)
            if encode_row.slot == NO_SLOT:
                self._payloads[encode_row.request] = row
                first.append(0)
                done.append(False)
                continue
            if encode_row.slot == NO_SLOT_YET:
                held = sum(self._parcel_bytes(call) for call in command.encode)
                self._parcels[encode_row.request] = row, command.phase, held
            else:
                self._require(encode_row.slot not in self._slots, f"slot {encode_row.slot} is taken")
                self._slots[encode_row.slot] = row
            first.append(row.step(self._vocab_size))
            done.append(row.done)
        return EncodeResult(np.array(first, np.int32)[:, None], np.array(done))

    def _parcel_bytes(self, call: EncodeCall) -> int:
        """Held by a call's payload; the chunks before a prompt's last hold it together with that."""
        if all(row.slot == NO_SLOT for row in call.rows):
            return 0
        return self.payload_bytes(call.rows_bucket, call.context_bucket or call.tokens_bucket)

    def _take_prompt(self, call: EncodeCall, encode_row: EncodeRow) -> _Row:
        self._require(len(encode_row.token_ids) <= call.tokens_bucket, "tokens do not fit their bucket")
        if call.context_bucket == 0:
            self._require(encode_row.start == 0 and encode_row.slot != NO_SLOT, "a whole prompt lacks its slot")
            return _Row(list(encode_row.token_ids), encode_row.generated, encode_row.sampling)
        row = self._payloads.pop(encode_row.request, None) or _Row([], encode_row.generated, encode_row.sampling)
        self._require(
            encode_row.start == len(row.tokens), f"chunk at {encode_row.start} after {len(row.tokens)} tokens"
        )
        row.tokens += encode_row.token_ids
        self._require(len(row.tokens) <= call.context_bucket, "prompt exceeds its payload")
        return row

    def _decode(self, call: DecodeCall) -> DecodeResult:
        self._require(call.rows_bucket in self._plan.buckets.decode_rows, f"no program for {call.rows_bucket} rows")
        self._require(
            call.cache_bucket in self._plan.buckets.cache_tokens, f"no program for {call.cache_bucket} tokens"
        )
        live = {slot: row for slot, row in self._slots.items() if not row.done}
        if call.part is not None:
            parts = decode_parts(self._plan.schedule)
            live = {slot: row for slot, row in live.items() if place_of(slot, parts)[0] == call.part}
        self._require(all(slot < call.rows_bucket for slot in live), "a live row lies beyond the decode bucket")
        tokens = np.zeros((call.iterations, call.rows_bucket, 1), np.int32)
        counts = np.zeros((call.iterations, call.rows_bucket), np.int32)
        for slot, row in live.items():
            for iteration in range(call.iterations):
                if row.done:
                    break
                self._require(len(row.tokens) <= call.cache_bucket, "a row outgrows what attention reads")
                tokens[iteration, slot, 0] = row.step(self._vocab_size)
                counts[iteration, slot] = 1
        done = np.array([slot not in self._slots or self._slots[slot].done for slot in range(call.rows_bucket)])
        return DecodeResult(tokens, counts, done)

    def _require(self, holds: bool, complaint: str) -> None:
        if not holds:
            raise AssertionError(f"the Runner broke its contract: {complaint}")
