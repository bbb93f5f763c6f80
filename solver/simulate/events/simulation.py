"""The event simulation: a Schedule, step by step, on the requests of a Demand.

It shares with the closed forms only the costs of stages on a batch. Everything else happens: requests are drawn or
replayed, wait, are admitted by a policy that knows no output length, pass the stages one micro-batch after another,
end, and make room. So it is the check of the closed forms, and the only source of waits.

    Demand (arrivals) -> policy (phases, chunked, apart) -> times of stages (costs) -> clock -> Outcome
"""

from __future__ import annotations

import dataclasses
import math

from solver.plan.schedule import Schedule
from solver.plan.timeline import Timeline
from solver.plan.under_way import works_apart
from solver.simulate.costs import Pipeline
from solver.simulate.events.apart import ApartLoop
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.chunked import ChunkedLoop
from solver.simulate.events.costs import Costs, WorkloadCosts
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.mixed import WorkloadMixedCosts
from solver.simulate.events.outcome import Outcome, merged
from solver.simulate.events.phases import PhaseLoop
from solver.simulate.events.queue import Room
from solver.simulate.points import Conditions


@dataclasses.dataclass(frozen=True, eq=False)
class Machines:
    """What the phases run on.

    Attributes:
      encode: pipeline of the encode phases.
      decode: of the decode phases; the same object where stages do both.
      mean_input: E[I] of the workload that the pipelines' costs were tabulated for: what "one prompt" costs.
      whole_prompts: of that workload, as `solver.simulate.chunked.whole_prompts` counts them.
      hand_over_s: seconds that the cache of one prompt of the workload takes from encode to decode devices.
    """

    encode: Pipeline
    decode: Pipeline
    mean_input: float
    hand_over_s: float = 0.0
    whole_prompts: int = 1


def simulate(
    schedule: Schedule,
    machines: Machines,
    demand: Demand,
    conditions: Conditions,
    *,
    first_token: str = "encode",
    corrected: bool = True,
    barrier: bool = True,
    fused: bool = True,
    replicas: int = 1,
    cache_tokens: int | None = None,
    page_tokens: int = 1,
    source: BatchSource | None = None,
    timeline_capacity: int = 20_000,
) -> Outcome:
    """Runs the whole demand.

    Args:
      schedule: policy and control variables. Micro-batches are counts here: ceil(decode_batch / micro_batch) and
        ceil(encode_batch / encode_micro_batch), their rows as equal as whole rows can be.
      machines: pipelines of one replica.
      demand: `replay`, `saturated` or `arriving`. At saturation requests admitted while the loop fills or drains are
        not measured; draw several times as many as are alive at once.
      conditions: clock of the percentiles, compaction, delivery; cache_layout "slots" limits rows to
        `schedule.most_rows`, "paged" also tokens to `cache_tokens`: phases admit whom the cache holds through the
        coming phase (residents may outgrow it later, which `peak_tokens` shows), chunked throws out whoever came last.
      first_token: who emits it: "encode" (S - 1 decode iterations) or "decode" (S).
      corrected: rra and waa: B_E follows the planned decode batch as the runner does; False: B_E is fixed.
      barrier: a phase starts when the one before has left every stage (2.2); False: stages go on as they are free.
      fused: chunked: rows and prompt tokens share one pass over the weights; False: two calls, as this engine's.
      replicas: copies of the machines; requests go to them in turns.
      cache_tokens: positions that a replica's cache holds ("paged"); None: no limit.
      page_tokens: positions that are given out together (chunked).
      source: costs of the very batch, from the lengths of its prompts and, for padded profiles, in its compiled shapes
        (all policies but chunked); None: prompts cost as the workload's mean ones.
      timeline_capacity: entries that the outcome's timeline keeps, of the first replica.

    Raises:
      ValueError: the demand is too short to measure, or a request can never fit.
    """
    if schedule.policy == "chunked" and first_token != "encode":
        raise ValueError("policy: chunked prefill needs a model whose encode phase emits the first token")
    room = Room(schedule.most_rows, math.inf if cache_tokens is None else cache_tokens, page_tokens)
    outcomes = []
    for replica in range(replicas):
        share, timeline = demand.share(replica, replicas), Timeline(timeline_capacity)
        loop: PhaseLoop | ChunkedLoop | ApartLoop
        if schedule.policy == "chunked":
            mixed = WorkloadMixedCosts(machines.decode, machines.mean_input, fused, machines.whole_prompts)
            loop = ChunkedLoop(schedule, mixed, share, room, timeline)
        elif works_apart(schedule):
            encode: Costs = WorkloadCosts(machines.encode)
            decode: Costs = WorkloadCosts(machines.decode)
            if source is not None:
                most_decode = int(demand.decode_iterations(first_token).max())
                encode, decode = (source.costs(side, most_decode) for side in (machines.encode, machines.decode))
            per_token_s = machines.hand_over_s / machines.mean_input
            loop = ApartLoop(schedule, encode, decode, share, room, per_token_s, first_token, corrected, timeline)
        else:
            costs: Costs = WorkloadCosts(machines.decode)
            if source is not None:
                costs = source.costs(machines.decode, int(demand.decode_iterations(first_token).max()))
            loop = PhaseLoop(schedule, costs, share, conditions, room, first_token, corrected, barrier, timeline)
        outcomes.append(loop.run())
    return merged(tuple(outcomes))
