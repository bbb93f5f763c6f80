"""The Executor of WAA: encode stages and decode stages apart, each with its own mesh, weights and programs.

    encode call -> payloads on encode stages -> hand-over -> parcel on decode stages -> insert -> decode

Either side's programs are dispatched without waiting, so both work at once; the Runner asks what has arrived. Of an
encoder-decoder model encode stages have the encoder and decode stages the decoder: activations of prompts are handed
over, and decode stages make keys and values of them when the first row of a parcel is let in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jax import Array

from exegpt_jax.engine import compiling
from exegpt_jax.engine.apart.pipeline_sides import PipelineDecodeSide, PipelineEncodeSide
from exegpt_jax.engine.apart.sides import DecodeSide
from exegpt_jax.engine.apart.travelling import Call, Phase
from exegpt_jax.engine.api import (
    NO_SLOT_YET,
    EncodeCall,
    EngineError,
    PhaseCommand,
    Travelling,
)
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.pipeline.pipeline import Pipeline
from exegpt_jax.engine.programs import Recipes
from exegpt_jax.engine.results import Parts, guarded, tells
from exegpt_jax.engine.state import Payload
from exegpt_jax.engine.transfer.handover import HandOver, Progress
from exegpt_jax.engine.transfer.links import Link
from exegpt_jax.sharding.stage import Stage
from solver.plan.memory import payload_bytes
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan
from solver.plan.schedule import StageSpec
from solver.plan.under_way import buffered_tokens, most_batches, sides

_ENCODE_PROGRAMS = ("encode", "payload", "chunk")
_DECODE_PROGRAMS = (
    "alloc",
    "release",
    "move",
    "take",
    "insert",
    "decode",
    "begin",
    "cut",
    "iterate",
    "put back",
    "keep",
)


@dataclasses.dataclass
class _Parcel:
    """Payloads on decode stages, or on their way there.

    Attributes:
      payloads: of each decode stage, rows in the call's order; empty until they are made of x.
      length: in positions.
      call: that they come from.
      left: requests that are neither inserted nor dropped.
      x: what an encoder made of the prompts; None where payloads are handed over.
    """

    payloads: tuple[Payload, ...]
    length: int
    call: EncodeCall
    left: set[int]
    x: Array | None = None


class WaaExecutor:
    """Runs phases on stages of two sides: each has the whole model, or one the encoder and the other the decoder.

    Args:
      stages: in the plan's order, each on devices of its own.
      plan: of a policy that works apart.
      clock: of the Runner, for the times of each stage.
      checked: compares every payload before and after its hand-over, which waits for both; for tests.

    Attributes:
      stages, plan, clock: as given.
    """

    def __init__(
        self, stages: Sequence[Stage], plan: Plan, clock: Callable[[], float] = time.monotonic, *, checked: bool = False
    ) -> None:
        self.stages, self.clock = tuple(stages), clock
        specs = sides(plan.schedule.stages)
        encode, decode = ([stage for stage in stages if stage.stage.devices in _devices(side)] for side in specs)
        self.plan = plan
        # No more are ever under way, so that the loop that decodes is never held up here.
        window = most_batches(len(encode)) * 2 * plan.schedule.encode_batch
        self._encoders = Pipeline(encode, _side(plan, specs[0]), clock, window)
        self._hands_activations = decode[0].spec.encoder_layers > 0
        self._decoders: Engine | Pipeline
        if len(decode) == decode_parts(plan.schedule) == 1 and not self._hands_activations:
            self._decoders = Engine(decode[0], _side(plan, specs[1]))
        else:
            self._decoders = Pipeline(decode, _side(plan, specs[1]), clock)
        self._decode_stages = tuple(decode)
        self._link = Link(encode[-1].mesh, decode[0].mesh)
        self._checked = checked
        self._road: HandOver | None = None
        if not self._hands_activations:
            self._road = HandOver(encode, decode, plan.cache_dtype, checked=checked)
        self._shapes = Recipes(encode[-1], _side(plan, specs[0])).payload_shapes()
        largest = max(self.payload_bytes(rows, tokens) for rows, tokens in self._shapes)
        buffered = buffered_tokens(plan.schedule.encode_batch, plan.max_prompt_tokens)
        self.buffer_bytes = max(largest, self.payload_bytes(1, buffered))

    def warm_up(self, progress: Progress = lambda name, done, total: None) -> tuple[Program, ...]:
        """Compiles what the plan can reach on either side and between them, and allocates the cache.

        `progress` counts the programs of one stage, or of the road between, at a time.
        """
        programs = self.compile(progress)
        self._begin()
        self._compiled_before = compiling.compilations()
        return programs

    def compile(self, progress: Progress = lambda name, done, total: None) -> tuple[Program, ...]:
        """The first half of `warm_up`: nothing is run, no cache is made."""
        programs: tuple[Program, ...] = ()
        for engine in self._encoders.engines:
            programs += engine.warm_up(progress, _ENCODE_PROGRAMS)
        if self._road is not None:
            programs += self._road.warm_up(self._shapes, progress)
        decoders = [self._decoders] if isinstance(self._decoders, Engine) else self._decoders.engines
        kinds = (*_DECODE_PROGRAMS, "encode") if self._hands_activations else _DECODE_PROGRAMS
        for each in decoders:
            programs += each.warm_up(progress, kinds)
        return programs

    def take_over(self, before: WaaExecutor) -> None:
        """Begins where another plan on the same stages has come to rest; its cache is freed first. Compiled so far."""
        before._decodes.forget()
        before._encoders.forget()
        self._begin()
        self._compiled_before = before._compiled_before

    def reset(self) -> None:
        """Back to an empty cache; the old one's memory is free before the new one is taken."""
        self._decodes.forget()
        self._encoders.forget()
        self._begin()

    def _begin(self) -> None:
        self._parcels: dict[int, _Parcel] = {}
        self._encodes = PipelineEncodeSide(self._encoders)
        self._decodes: DecodeSide | PipelineDecodeSide
        if isinstance(self._decoders, Engine):
            self._decodes = DecodeSide(self._decoders)
        else:
            self._decodes = PipelineDecodeSide(self._decoders)

    def live_bytes(self) -> int:
        """On the fullest device of either side: prompts in progress, parcels that are not inserted, slots in use."""
        parcels = {id(parcel): parcel for parcel in tuple(self._parcels.values())}.values()
        waiting = sum(self.payload_bytes(parcel.call.rows_bucket, parcel.length) for parcel in parcels)
        return self._encodes.live_bytes() + waiting + self._decodes.live_bytes()

    def payload_bytes(self, rows: int, tokens: int) -> int:
        dtype = self.plan.cache_dtype
        return max(payload_bytes(each.spec, each.stage, rows, tokens, dtype) for each in self._decode_stages)

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
        encoded = tuple(self._encode(index, call) for index, call in enumerate(command.encode))
        decoded = None if command.decode is None else self._decodes.decode(command.decode)
        return Phase(self._encoders, encoded, decoded)

    def _encode(self, index: int, call: EncodeCall) -> Call:
        encoded = self._encodes.encode(call)
        requests = {row.request for row in call.rows if row.slot == NO_SLOT_YET}
        there: tuple[Payload, ...] | Array = ()
        if encoded.x is not None:
            there = self._hand_over(encoded.x)
            self._parcels |= dict.fromkeys(requests, _Parcel((), encoded.length, call, requests, there))
        elif encoded.payloads:
            assert self._road is not None
            there = self._road.send(encoded.payloads)
            self._parcels |= dict.fromkeys(requests, _Parcel(there, encoded.length, call, requests))
        parts = None if encoded.block is None else Parts.of(encoded.block, 1, tells(call))
        return Call(index, call, parts, encoded.marks, there)

    def _hand_over(self, x: Array) -> Array:
        """An encoder's activations on the first decode stage: on their way, not there yet."""
        there = self._link.carry(x)
        if self._checked and np.asarray(x).tobytes() != np.asarray(there).tobytes():
            raise EngineError(f"hand-over: activations of {x.shape[0]} rows arrived altered")
        return there

    def _insert(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Every parcel at once, of which rows are let in."""
        slots = dict(pairs)
        # Beyond the cache, whose micro-batches may allocate a few rows more.
        beyond = self.plan.schedule.max_rows + decode_parts(self.plan.schedule)
        while slots:
            request = next(iter(slots))
            if request not in self._parcels:
                raise EngineError(f"insert: nothing was handed over for request {request}")
            parcel = self._parcels[request]
            rows = parcel.call.rows
            where = [slots.pop(row.request, beyond) if row.request in parcel.left else beyond for row in rows]
            for row, slot in zip(rows, where, strict=True):
                if slot < beyond:
                    self._take(row.request)
            if parcel.x is not None:
                assert isinstance(self._decoders, Pipeline)
                parcel.payloads, parcel.x = self._decoders.encode(parcel.call, None, (), parcel.x).payloads, None
            self._decodes.insert(parcel.payloads, parcel.length, rows, where)

    def _take(self, request: int) -> None:
        """A request is no longer on its way; with the last of a parcel that one is forgotten."""
        parcel = self._parcels.pop(request, None)
        if parcel is not None:
            parcel.left.discard(request)


def _devices(stages: Sequence[StageSpec]) -> set[tuple[int, ...]]:
    return {stage.devices for stage in stages}


def _side(plan: Plan, stages: tuple[StageSpec, ...]) -> Plan:
    """The plan as one side sees it: its stages, and one iteration in each decode call."""
    return dataclasses.replace(
        plan,
        schedule=dataclasses.replace(plan.schedule, stages=stages, decode_iterations=1),
        # Predictions and accounts are lists over all stages.
        prediction=None,
        memory=(),
    )
