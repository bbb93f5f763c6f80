"""One turn of the loop where encode devices and decode devices are apart.

    encode phases that may start are dispatched -> first tokens that are ready are handed out -> what has arrived is let
    in, one iteration is dispatched -> the oldest iteration's tokens are handed out

Encode devices work on through all of it; the loop waits for them only when nobody decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from exegpt_jax.engine.api import ApartExecutor
from exegpt_jax.runner import delivery
from exegpt_jax.runner.apart import ApartBatch, Flight, Pass
from exegpt_jax.runner.batch import Queue
from exegpt_jax.runner.entries import decode_entry, encode_entry, stage_entries
from solver.plan.timeline import Timeline, TimelineEntry


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
    deliver: Callable[[delivery.Outcome, float], None]


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
            _hand_out_first(batch, flight, desk)
    decodes = _dispatch_decode(batch, desk)
    if decodes and len(batch.passes) < batch.parts:
        return
    if batch.passes:
        done = batch.passes.popleft()
        _hand_out(batch, done, desk)
        # Micro-batches side by side: none's time is that of a turn.
        if batch.parts == 1:
            desk.timeline.close(done.command.phase, desk.clock() - begun_s)
    elif batch.flights:
        _wait(batch, batch.flights[0], desk)


def _dispatch_decode(batch: ApartBatch, desk: Desk) -> bool:
    """What decode devices are to do next, if anything; whether an iteration is among it."""
    command = batch.next_decode(desk.phases)
    if command is None:
        return False
    dispatched_s = desk.clock()
    pending = desk.executor.dispatch(command)
    if command.decode is None:
        return False
    batch.passes.append(Pass(command, pending, batch.rows_of(command.decode.part), dispatched_s))
    return True


def _hand_out(batch: ApartBatch, done: Pass, desk: Desk) -> None:
    """The tokens of an iteration; blocks until they are there."""
    call, result = done.command.decode, done.pending.decoded()
    assert call is not None
    assert result is not None
    ready_s = desk.clock()
    rows = {slot: row for slot, row in done.rows.items() if row.slot is not None}
    outcome = delivery.decoded_tokens(result, rows, ready_s)
    entries = stage_entries(done.command.phase, "decode", result.work)
    entries = entries or [decode_entry(done.command.phase, call, outcome, done.dispatched_s, ready_s)]
    _note(desk, entries, batch.decode_stages)
    desk.deliver(outcome, ready_s)


def _hand_out_first(batch: ApartBatch, flight: Flight, desk: Desk) -> None:
    """The first tokens of a batch; blocks until it is encoded."""
    phase, calls = flight.command.phase, flight.command.encode
    results = flight.pending.encoded()
    ready_s = desk.clock()
    entries = stage_entries(phase, "encode", [work for result in results for work in result.work])
    entries = entries or [encode_entry(phase, calls, flight.dispatched_s, ready_s)]
    batch.was_encoded(flight, max(entry.ready_s for entry in entries if entry.stage == 0))
    outcome = delivery.first_tokens_of(calls, results, lambda row: batch.encoding.get(row.request), ready_s)
    _note(desk, entries, batch.encode_stages)
    desk.deliver(outcome, ready_s)


def _note(desk: Desk, entries: Iterable[TimelineEntry], stages: Sequence[int]) -> None:
    """Entries of one side, whose stages are counted from 0, under the numbers that they have in the plan."""
    for entry in entries:
        desk.timeline.add(dataclasses.replace(entry, stage=stages[entry.stage]))


def _wait(batch: ApartBatch, flight: Flight, desk: Desk) -> None:
    """Nobody decodes: the next thing that happens is that a batch is encoded, or arrives."""
    if flight.delivered:
        flight.pending.arrive()
    else:
        _hand_out_first(batch, flight, desk)
