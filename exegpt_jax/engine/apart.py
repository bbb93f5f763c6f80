"""The Executor of WAA: encode devices and decode devices apart, each with its own mesh, weights and programs.

    encode call -> payload on encode devices -> hand-over -> parcel on decode devices -> insert -> decode

Either side's programs are dispatched without waiting, so both work at once; the Runner asks what has arrived.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from exegpt_jax.engine import compiling
from exegpt_jax.engine.api import (
    NO_SLOT_YET,
    DecodeResult,
    EncodeCall,
    EncodeResult,
    EncodeRow,
    EngineError,
    PhaseCommand,
    Travelling,
)
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.handover import HandOver
from exegpt_jax.engine.programs import Recipes
from exegpt_jax.engine.results import Parts, decode_result, encode_result, guarded, ready, tells
from exegpt_jax.engine.sides import DecodeSide, EncodeSide
from exegpt_jax.engine.state import Payload
from exegpt_jax.sharding.stage import Stage
from solver.plan.memory import payload_bytes
from solver.plan.plan import Plan
from solver.plan.schedule import StageSpec
from solver.plan.under_way import buffered_tokens, sides

ENCODE_PROGRAMS = ("encode", "payload", "chunk")
DECODE_PROGRAMS = ("alloc", "release", "move", "insert", "decode")


@dataclasses.dataclass
class _Parcel:
    """A payload on decode devices, or on its way there.

    Attributes:
      payload: rows in the call's order.
      length: in positions.
      rows: of the call.
      left: requests that are neither inserted nor dropped.
    """

    payload: Payload
    length: int
    rows: tuple[EncodeRow, ...]
    left: set[int]


class WaaExecutor:
    """Runs phases on two stages, each with the whole model.

    Args:
      encode, decode: stages on devices of their own, as the plan has them.
      plan: of a policy that works apart.
      checked: compares every payload before and after its hand-over, which waits for both; for tests.
    """

    def __init__(self, encode: Stage, decode: Stage, plan: Plan, *, checked: bool = False) -> None:
        encode_stages, decode_stages = sides(plan.schedule.stages)
        self._encoder = Engine(encode, _side(plan, encode_stages))
        self._decoder = Engine(decode, _side(plan, decode_stages))
        self._road = HandOver(encode, decode, plan.cache_dtype, checked=checked)
        self._payloads = Recipes(encode, self._encoder.plan).payload_shapes()
        largest = max(self.payload_bytes(rows, tokens) for rows, tokens in self._payloads)
        buffered = buffered_tokens(plan.schedule.encode_batch, plan.max_prompt_tokens)
        self.buffer_bytes = max(largest, self.payload_bytes(1, buffered))

    def warm_up(self) -> tuple[Program, ...]:
        """Compiles what the plan can reach on either side and between them, and allocates the cache."""
        programs = self._encoder.warm_up(kinds=ENCODE_PROGRAMS)
        programs += self._road.warm_up(self._payloads)
        programs += self._decoder.warm_up(kinds=DECODE_PROGRAMS)
        self._begin()
        self._compiled_before = compiling.compilations()
        return programs

    def reset(self) -> None:
        """Back to an empty cache; the old one's memory is free before the new one is taken."""
        self._decodes.forget()
        self._begin()

    def _begin(self) -> None:
        self._parcels: dict[int, _Parcel] = {}
        self._encodes, self._decodes = EncodeSide(self._encoder), DecodeSide(self._decoder)

    def live_bytes(self) -> int:
        """Bytes per device of either side: prompts in progress, parcels that are not inserted, slots in use."""
        parcels = {id(parcel): parcel for parcel in tuple(self._parcels.values())}.values()
        waiting = sum(self.payload_bytes(parcel.payload.rows.token.shape[0], parcel.length) for parcel in parcels)
        return self._encodes.live_bytes() + waiting + self._decodes.live_bytes()

    def payload_bytes(self, rows: int, tokens: int) -> int:
        stage, plan = self._decoder.stage, self._decoder.plan
        return payload_bytes(stage.spec, stage.stage, rows, tokens, plan.cache_dtype)

    def compilations(self) -> int:
        return compiling.compilations() - self._compiled_before

    def dispatch(self, command: PhaseCommand) -> Travelling:
        return guarded(lambda: self._dispatch(command))

    def _dispatch(self, command: PhaseCommand) -> Travelling:
        self._encodes.drop(command.drop)
        for request in command.drop:
            self._take(request)
        self._decodes.release(command.release)
        self._decodes.move(command.moves)
        self._insert(command.insert)
        encoded = tuple((call, *self._encode(call)) for call in command.encode)
        decoded = None if command.decode is None else self._decodes.decode(command.decode)
        return _Phase(encoded, decoded)

    def _encode(self, call: EncodeCall) -> tuple[Parts, Payload | None]:
        encoded = self._encodes.encode(call)
        there = None
        if encoded.payload is not None:
            there = self._road.send(encoded.payload)
            requests = {row.request for row in call.rows if row.slot == NO_SLOT_YET}
            parcel = _Parcel(there, encoded.length, call.rows, requests)
            self._parcels |= dict.fromkeys(requests, parcel)
        return Parts.of(encoded.block, 1, tells(call)), there

    def _insert(self, pairs: Sequence[tuple[int, int]]) -> None:
        """One program for each parcel of which rows are let in."""
        slots = dict(pairs)
        while slots:
            request = next(iter(slots))
            if request not in self._parcels:
                raise EngineError(f"insert: nothing was handed over for request {request}")
            parcel = self._parcels[request]
            beyond = self._decoder.plan.schedule.max_rows
            where = [slots.pop(row.request, beyond) if row.request in parcel.left else beyond for row in parcel.rows]
            for row, slot in zip(parcel.rows, where, strict=True):
                if slot < beyond:
                    self._take(row.request)
            self._decodes.insert(parcel.payload, parcel.length, parcel.rows, where)

    def _take(self, request: int) -> None:
        """A request is no longer on its way; with the last of a parcel that one is forgotten."""
        parcel = self._parcels.pop(request, None)
        if parcel is not None:
            parcel.left.discard(request)


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A phase under way."""

    encodes: tuple[tuple[EncodeCall, Parts, Payload | None], ...]
    decode: Parts | None

    def is_encoded(self) -> bool:
        return all(parts.is_ready() for _, parts, _ in self.encodes)

    def has_arrived(self) -> bool:
        return ready([payload for _, _, payload in self.encodes])

    def arrive(self) -> None:
        guarded(lambda: jax.block_until_ready([payload for _, _, payload in self.encodes]))

    def encoded(self) -> tuple[EncodeResult, ...]:
        return guarded(lambda: tuple(encode_result(call, parts) for call, parts, _ in self.encodes))

    def decoded(self) -> DecodeResult | None:
        parts = self.decode
        return None if parts is None else guarded(lambda: decode_result(parts))


def _side(plan: Plan, stages: tuple[StageSpec, ...]) -> Plan:
    """The plan as one side's engine sees it: its stages, and one iteration in each decode call."""
    return dataclasses.replace(
        plan,
        schedule=dataclasses.replace(plan.schedule, stages=stages, decode_iterations=1),
        # Predictions and accounts are lists over all stages.
        prediction=None,
        memory=(),
    )
