"""The diary of a simulated run: one line per phase, one moment per iteration, from which the Outcome follows."""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.timeline import Kind, Timeline, TimelineEntry
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.outcome import Outcome


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
      begin_s: of its encode part, or of its decode part where nobody was encoded.
      first: number of the first request admitted.
      admitted: how many.
      iteration: last one before this phase.
      rows: that decode when it starts.
      held: rows whose slots are taken.
      tokens: most positions in use.
      deferred: somebody stood back for want of room.
    """

    begin_s: float
    first: int
    admitted: int
    iteration: int
    rows: int
    held: int
    tokens: float
    deferred: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """float64 [requests]: when each request was encoded, and when its first and last token were delivered."""

    encode_start_s: Floats
    first_token_s: Floats
    last_token_s: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class Totals:
    """Counts of a whole run, and its timeline."""

    deferrals: int
    preemptions: int
    busy_s: Floats
    timeline: Timeline


def outcome_of(demand: Demand, phases: list[Phase], moments: Moments, most_decode: int, totals: Totals) -> Outcome:
    """Statistics over the whole run, or at saturation over the part between filling and draining."""
    iterations = np.array([phase.iteration for phase in phases], np.int64)
    admits = np.array([phase.admitted for phase in phases], np.int64)
    begins_s = np.array([phase.begin_s for phase in phases])
    span_s = float(max(moments.last_token_s.max(), begins_s[-1]) - begins_s[0])
    low, high = 0, len(phases)
    kept = np.ones(len(demand), bool)
    if demand.arrival_s is None:
        low, high, kept = steady_part(phases, iterations, admits, most_decode, len(demand))
        rate = admits[low:high].sum() / (begins_s[high] - begins_s[low])
    else:
        rate = len(demand) / float(moments.last_token_s.max() - demand.arrival_s[0])
    rows = np.array([phase.rows for phase in phases[low:high]], np.float64)
    return Outcome(
        input_tokens=demand.input_tokens[kept],
        output_tokens=demand.output_tokens[kept],
        arrival_s=None if demand.arrival_s is None else demand.arrival_s[kept],
        encode_start_s=moments.encode_start_s[kept],
        first_token_s=moments.first_token_s[kept],
        last_token_s=moments.last_token_s[kept],
        throughput_rps=float(rate),
        residents_mean=float(rows.mean()),
        residents_variance=float(rows.var()),
        phases=high - low,
        peak_rows=max(phase.held for phase in phases),
        peak_tokens=round(max(phase.tokens for phase in phases)),
        deferrals=totals.deferrals,
        deferred_phases=sum(phase.deferred for phase in phases[low:high]),
        preemptions=totals.preemptions,
        busy_share=totals.busy_s / span_s,
        timeline=totals.timeline,
    )


def steady_part(
    phases: list[Phase], iterations: Ints, admits: Ints, most_decode: int, requests: int
) -> tuple[int, int, np.ndarray]:
    """First phase after the loop has filled, last phase that admits, and which requests lived between the two.

    A loop is full when whoever came first, however long, has gone. Raises ValueError where nothing remains.
    """
    admitting = np.flatnonzero(admits)
    filled = admitting[iterations[admitting] >= min(most_decode, int(iterations[admitting[-1]]))]
    high = int(admitting[-1])
    low = int(filled[0])
    ends_before = iterations + most_decode <= iterations[high]
    kept = np.zeros(requests, bool)
    for index in admitting[(admitting >= low) & ends_before[admitting]]:
        kept[phases[index].first : phases[index].first + phases[index].admitted] = True
    if low >= high or not kept.any():
        raise ValueError(
            f"requests: {requests} are too few to fill the loop, measure and drain it; give several times as many"
        )
    return low, high, kept


@dataclasses.dataclass(frozen=True)
class Work:
    """What the entries of one phase and kind say, whatever the stage: as in `TimelineEntry`."""

    kind: Kind
    rows: int
    tokens: int
    iterations: int = 0
    first_stage: int = 0


def note(timeline: Timeline, phase: int, work: Work, dispatched_s: float, ready_s: list[float]) -> None:
    """Adds one entry per stage."""
    for stage, ready in enumerate(ready_s, start=work.first_stage):
        timeline.add(
            TimelineEntry(phase, work.kind, stage, dispatched_s, ready, work.rows, work.tokens, work.iterations)
        )
