"""The planner: from model, cluster, profiles, workload and bounds to the Plan with the highest throughput.

One question in, one Plan out, or one line that says which limit stands in the way. Everything that decides is part of
the request, so equal requests give equal bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.inputs import inputs_of
from solver.plan.memory import DeviceMemory, format_bytes, memory_table
from solver.plan.plan import Plan, make_plan
from solver.plan.prediction import Prediction, StageMemory, StagePrediction
from solver.plan.schedule import EXECUTED_POLICIES, Schedule, StageSpec
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import Lengths, lengths_of, residents
from solver.simulate.unit_costs import unit_costs

_USABLE = 0.9
_MOST_BATCH, _MOST_ROWS = 128, 1024


class Infeasible(ValueError):
    """No plan keeps every bound; the text is one line: which limit binds, and the nearest that would do.

    Attributes:
      nearest_latency_s: the least latency bound under which there is a plan; None where that is not what is in the way.
    """

    def __init__(self, line: str, nearest_latency_s: float | None = None) -> None:
        super().__init__(line)
        self.nearest_latency_s = nearest_latency_s


class Progress(Protocol):
    """Told now and then how the search stands; rates in requests per second, None before there are any."""

    def __call__(self, nodes: int, incumbent_rps: float | None, bound_rps: float | None) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class PlanRequest:
    """Everything that a plan depends on.

    Attributes:
      spec, model_name: the model's shapes; its name, for people.
      cluster: devices that may be used.
      profiles: one per device kind of the cluster.
      workload: lengths, and arrivals where its trace has them.
      bounds: what to keep.
      policies: which to search.
      gap: the search ends within this share of the best bound; 0 asks for a proof.
      time_limit_s: ends the search; None: none.
      margin: share by which predictions stay below the bounds; None: the profiles' own spread.
      dtype, cache_dtype: of weights and activations; of keys and values.
      overflow: share of periods in which residents may exceed the rows allocated.
      usable: share of a device's memory that may be filled.
      max_prompt_tokens, cache_tokens: longest prompt and row taken; None: the workload's.
      node_limit: ends the search after so many nodes; None: none.
    """

    spec: ModelSpec
    model_name: str
    cluster: Cluster
    profiles: tuple[Profile, ...]
    workload: Workload
    bounds: Bounds
    policies: tuple[str, ...] = EXECUTED_POLICIES
    gap: float = 0.0
    time_limit_s: float | None = None
    margin: float | None = None
    dtype: str = "bfloat16"
    cache_dtype: str = "bfloat16"
    overflow: float = 1e-3
    usable: float = _USABLE
    max_prompt_tokens: int | None = None
    cache_tokens: int | None = None
    node_limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Planned:
    """A Plan, and what is logged beside it but never hashed.

    Attributes:
      plan: the answer.
      seconds: the search took.
      trace: (seconds, incumbent, bound) as the search went on; rates in requests per second.
      log: lines for people.
    """

    plan: Plan
    seconds: float
    trace: tuple[tuple[float, float | None, float | None], ...] = ()
    log: tuple[str, ...] = ()


def plan_schedule(request: PlanRequest, progress: Progress | Callable[..., None] | None = None) -> Planned:
    """The best plan. Raises Infeasible, or ValueError where an input is no good."""
    began = time.monotonic()
    lengths = lengths_of(request.workload, request.spec.first_token)
    rows = _MOST_ROWS
    unit = unit_costs(request.profiles[0], request.spec, lengths, request.cluster, 1, rows)
    pipeline = Pipeline((PlacedStage(unit, request.spec.num_layers, True, True, None),))
    best: tuple[float, Schedule, Prediction] | None = None
    nearest = float("inf")
    for iterations in sorted({round(2 ** (i / 2)) for i in range(2 * int(np.log2(max(2, lengths.most_decode))) + 1)}):
        for batch in range(1, _MOST_BATCH + 1):
            found = _evaluate(request, lengths, pipeline, batch, iterations)
            if found is None:
                break
            schedule, prediction = found
            if request.bounds.latency_s is not None and prediction.latency_s > request.bounds.latency_s:
                nearest = min(nearest, prediction.latency_s)
                continue
            if best is None or prediction.throughput_rps > best[0]:
                best = (prediction.throughput_rps, schedule, prediction)
    if best is None:
        raise Infeasible(
            f"latency_bound_s: {request.bounds.latency_s:g} cannot be kept; the nearest is {nearest:.4g}", nearest
        )
    _, schedule, prediction = best
    plan = make_plan(
        request.spec, schedule, model=request.model_name, dtype=request.dtype, cache_dtype=request.cache_dtype,
        cache_tokens=request.workload.most_tokens, max_prompt_tokens=request.workload.most_input,
    )  # fmt: skip
    device = request.cluster.kinds[0]
    plan = dataclasses.replace(
        plan,
        prediction=prediction,
        bounds=request.bounds,
        inputs=inputs_of(request.model_name, request.spec, request.cluster, request.profiles, request.workload),
        memory=(_stage_memory(_memory(request, schedule), device.name, device.memory_bytes, request.usable),),
    )
    return Planned(plan, time.monotonic() - began)


def plan_front(
    request: PlanRequest,
    latency_bounds_s: Sequence[float | None],
    progress: Callable[..., None] | None = None,
) -> tuple[Planned | Infeasible, ...]:
    """The best plan under each latency bound, other bounds kept; what one search learns, the next reuses."""
    found: list[Planned | Infeasible] = []
    for latency_s in latency_bounds_s:
        bounds = dataclasses.replace(request.bounds, latency_s=latency_s)
        try:
            found.append(plan_schedule(dataclasses.replace(request, bounds=bounds), progress))
        except Infeasible as error:
            found.append(error)
    return tuple(found)


def _evaluate(
    request: PlanRequest, lengths: Lengths, pipeline: Pipeline, batch: int, iterations: int
) -> tuple[Schedule, Prediction] | None:
    state = residents(lengths, iterations)
    peak = batch * float(state.rows[0])
    max_rows = max(batch, int(np.ceil(peak + 3.1 * np.sqrt(batch * state.rows_variance))))
    if max_rows > _MOST_ROWS:
        return None
    schedule = Schedule(
        "rra", batch, iterations, min(max_rows, int(np.ceil(peak))), max_rows,
        (StageSpec("both", (0, request.spec.num_layers), (0,), 1),), max_rows, batch,
    )  # fmt: skip
    if _memory(request, schedule).total_bytes > request.usable * request.cluster.kinds[0].memory_bytes:
        return None
    encode_s = float(pipeline.encode_s(np.array(float(batch)))[0])
    decode = pipeline.decode_s(np.full(iterations, peak), state.context)[0]
    phase_s = float(decode.sum()) + pipeline.phase_s
    period_s = encode_s + phase_s
    d99 = lengths.decode_percentile(request.bounds.latency_percentile)
    return schedule, Prediction(
        throughput_rps=batch / period_s,
        latency_s=max(encode_s, -(-d99 // iterations) * period_s),
        encode_s=encode_s,
        iteration_s=phase_s / iterations,
        ttft_s=encode_s,
        period_s=period_s,
        decode_phase_s=phase_s,
        decode_batch=peak,
        stages=(StagePrediction(encode_s, phase_s / iterations, 1.0),),
        worst_mark="extrapolated" if pipeline.stages[0].unit.estimated else "interpolated",
    )


def _memory(request: PlanRequest, schedule: Schedule) -> DeviceMemory:
    plan = make_plan(
        request.spec, schedule, model="", dtype=request.dtype, cache_dtype=request.cache_dtype,
        cache_tokens=request.workload.most_tokens, max_prompt_tokens=request.workload.most_input,
    )  # fmt: skip
    return memory_table(request.spec, schedule, plan.buckets, request.dtype, request.cache_dtype)[0]


def _stage_memory(memory: DeviceMemory, kind: str, capacity: int, usable: float) -> StageMemory:
    if memory.total_bytes > usable * capacity:
        raise Infeasible(f"memory: {kind} needs {format_bytes(memory.total_bytes)}")
    return StageMemory(
        stage=memory.stage,
        device_kind=kind,
        weights_bytes=memory.weights_bytes,
        cache_bytes=memory.cache_bytes,
        payload_bytes=memory.payload_bytes,
        temporary_bytes=memory.temporary_bytes + memory.counts_bytes,
        capacity_bytes=capacity,
        usable_bytes=int(usable * capacity),
    )
