"""One turn of the loop where encode devices and decode devices are apart.

    encode phases that may start are dispatched -> first tokens that are ready are handed out -> what has arrived is let
    in, one iteration is dispatched -> its tokens are handed out

Encode devices work on through all of it; the loop waits for them only when nobody decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

from exegpt_jax.engine.api import ApartExecutor, PhaseCommand
from exegpt_jax.runner import delivery
from exegpt_jax.runner.apart import ApartBatch, Flight
from exegpt_jax.runner.batch import Queue
from exegpt_jax.runner.entries import decode_entry, encode_entry
from solver.plan.timeline import Timeline


class Deliver(Protocol):
    def __call__(self, outcome: delivery.Outcome, now_s: float, *, encoded: bool = False) -> None: ...


@dataclasses.dataclass(frozen=True)
class Desk:
    """What a turn needs of the Runner.

    Attributes:
      executor: of both sides.
      clock: seconds.
      phases: numbers for phases.
      timeline: gets the entries.
      deliver: hands out what a part brought.
    """

    executor: ApartExecutor
    clock: Callable[[], float]
    phases: Iterator[int]
    timeline: Timeline
    deliver: Deliver


def take_turn(batch: ApartBatch, waiting: Queue, desk: Desk) -> None:
    """Runs one turn; whatever a program may raise is passed on."""
    begun_s = desk.clock()
    while (command := batch.next_encode(desk.phases, waiting, begun_s, desk.executor)) is not None:
        dispatched_s = desk.clock()
        batch.took_off(command, desk.executor.dispatch(command), desk.executor, dispatched_s)
    for flight in tuple(batch.flights):
        if not flight.delivered:
            if not flight.pending.is_encoded():
                break
            _hand_out(batch, flight, desk)
    decode = batch.next_decode(desk.phases)
    if decode is not None:
        _decode(batch, decode, desk)
        desk.timeline.close(decode.phase, desk.clock() - begun_s)
    if batch.flights and (decode is None or decode.decode is None):
        _wait(batch, batch.flights[0], desk)


def _decode(batch: ApartBatch, command: PhaseCommand, desk: Desk) -> None:
    dispatched_s = desk.clock()
    result = desk.executor.dispatch(command).decoded()
    if command.decode is None or result is None:
        return
    ready_s = desk.clock()
    outcome = delivery.decoded_tokens(result, batch.slots.rows, ready_s)
    entry = decode_entry(command.phase, command.decode, outcome, dispatched_s, ready_s, batch.first_decode_stage)
    desk.timeline.add(entry)
    desk.deliver(outcome, ready_s)


def _hand_out(batch: ApartBatch, flight: Flight, desk: Desk) -> None:
    """The first tokens of a batch; blocks until it is encoded."""
    calls = flight.command.encode
    results = flight.pending.encoded()
    ready_s = desk.clock()
    batch.was_encoded(flight, ready_s)
    outcome = delivery.first_tokens_of(calls, results, lambda row: batch.encoding.get(row.request), ready_s)
    entry = encode_entry(flight.command.phase, calls, flight.dispatched_s, ready_s, batch.first_encode_stage)
    desk.timeline.add(entry)
    desk.deliver(outcome, ready_s, encoded=True)


def _wait(batch: ApartBatch, flight: Flight, desk: Desk) -> None:
    """Nobody decodes: the next thing that happens is that a batch is encoded, or arrives."""
    if flight.delivered:
        flight.pending.arrive()
    else:
        _hand_out(batch, flight, desk)
