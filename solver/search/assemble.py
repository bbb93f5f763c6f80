"""From the best candidate to the Plan: schedule, predictions on both clocks, memory of every stage, runners-up."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.plan.bands import planned_bands
from solver.plan.bounds import Clock
from solver.plan.certificate import Certificate, Killer, RunnerUp
from solver.plan.inputs import inputs_of
from solver.plan.memory import memory_table
from solver.plan.plan import Plan, encode_call_rows, make_plan
from solver.plan.prediction import MarkName, Prediction, StageMemory, StagePrediction
from solver.plan.schedule import CORRECTED_POLICIES, POLICIES, Policy, Schedule
from solver.search.margins import margins_of
from solver.search.outcome import Best, Outcome
from solver.search.rra_search import rra_evaluator
from solver.search.setting import Setting
from solver.simulate.lengths import residents
from solver.simulate.points import Points


def schedule_of(setting: Setting, best: Best) -> Schedule:
    """The control variables, in the words that the runner executes."""
    points = best.points
    batch, max_rows = int(points.encode_batch[0]), int(points.max_rows[0])
    encode_micro = math.ceil(batch / best.encode_micro_batches)
    if setting.padding is not None:
        encode_micro = encode_call_rows(encode_micro, setting.padding.max_prompt_tokens)
    max_rows, parts = max(max_rows, batch), best.decode_micro_batches
    decode_batch = min(max_rows, max(1, round(float(points.decode_batch[0]))))
    lengths, longest = setting.lengths, setting.memory.max_prompt_tokens
    bands = planned_bands(batch, decode_batch, max_rows, lengths.mean_input, lengths.mean_input2, longest)
    return Schedule(
        policy=best.policy,
        encode_batch=batch,
        decode_iterations=int(points.decode_iterations[0]),
        decode_batch=decode_batch,
        max_rows=max_rows,
        stages=best.placed.stages,
        micro_batch=max_rows if parts == 1 else math.ceil(decode_batch / parts),
        encode_micro_batch=encode_micro,
        token_budget=best.token_budget,
        bands=bands if best.policy in CORRECTED_POLICIES else None,
        encode_replicas=best.placed.encode_replicas,
        decode_replicas=best.placed.decode_replicas,
    )


def plan_of(
    setting: Setting,
    best: Best,
    certificate: Certificate,
    runners_up: tuple[RunnerUp, ...],
    *,
    with_margins: bool = True,
) -> Plan:
    """The whole file; `with_margins` False leaves out what takes searches of its own."""
    request = setting.request
    plan = make_plan(
        request.spec, schedule_of(setting, best), model=request.model_name, dtype=request.dtype,
        cache_dtype=request.cache_dtype, cache_tokens=setting.conditions.cache_tokens,
        max_prompt_tokens=setting.memory.max_prompt_tokens,
    )  # fmt: skip
    plan = dataclasses.replace(
        plan,
        cache_layout=request.cache_layout,
        compaction=request.compaction,
        delivery=request.delivery,
        prediction=prediction_of(setting, best),
        replicas=best.placed.copies,
        inputs=inputs_of(request.model_name, request.spec, request.cluster, request.profiles, request.workload),
        bounds=request.bounds,
        certificate=certificate,
        runners_up=runners_up,
        margins=margins_of(setting, best) if with_margins else None,
    )
    return dataclasses.replace(plan, memory=_memory(setting, best, plan))


def prediction_of(setting: Setting, best: Best) -> Prediction:
    """What to expect, on the encode clock and, where arrivals are known, with the wait."""
    encode = _on_clock(setting, best, "encode")
    arrival = _on_clock(setting, best, "arrival") if setting.rate_rps is not None else None
    iterations = int(encode.decode_iterations[0])
    return Prediction(
        throughput_rps=best.rps,
        latency_s=float(encode.latency_s[0]),
        encode_s=float(encode.encode_s[0]),
        iteration_s=float(encode.decode_phase_s[0]) / iterations,
        latency_with_wait_s=_finite(arrival, "latency_s"),
        ttft_s=float(encode.ttft_s[0]),
        ttft_with_wait_s=_finite(arrival, "ttft_s"),
        tpot_s=_finite(encode, "tpot_s"),
        period_s=float(encode.period_s[0]),
        decode_phase_s=float(encode.decode_phase_s[0]),
        decode_batch=float(encode.decode_batch[0]),
        stages=_stage_predictions(setting, best, encode),
        worst_mark=_worst_mark(best),
    )


def runner_up(policy: Policy, outcome: Outcome, chosen: Best | None, setting: Setting) -> RunnerUp:
    """The best of a policy that was not chosen, and what killed it."""
    best = outcome.best or outcome.nearest
    if best is None:
        return RunnerUp(policy, "unsupported", outcome.reason or "nothing could be evaluated on these devices")
    points = best.points
    killer: Killer
    if outcome.best is not None and chosen is not None:
        killer, rps = "slower", outcome.best.rps
        reason = f"reaches {rps / chosen.rps:.1%} of the plan's throughput ({outcome.proven_over})"
    else:
        rps = None
        killer, reason = _killer(setting, best)
    return RunnerUp(
        policy,
        killer,
        reason,
        rps,
        latency_s=_finite(points, "latency_s"),
        ttft_s=_finite(points, "ttft_s"),
        tpot_s=_finite(points, "tpot_s"),
        encode_batch=int(points.encode_batch[0]),
        decode_iterations=int(points.decode_iterations[0]),
        micro_batch=math.ceil(int(points.max_rows[0]) / best.decode_micro_batches),
        stages=len(best.placed.stages),
        tensor=best.placed.most_tensor,
    )


def _killer(setting: Setting, best: Best) -> tuple[Killer, str]:
    """Which limit the nearest candidate breaks most."""
    limits, points = setting.limits, best.points
    names: dict[Killer, tuple[float, float]] = {
        "latency": (float(points.latency_s[0]), limits.latency_s),
        "ttft": (float(points.ttft_s[0]), limits.ttft_s),
        "tpot": (float(points.tpot_s[0]), limits.tpot_s),
    }
    usable = np.array(best.placed.usable_bytes(setting))
    share = float((points.memory_bytes[:, 0] / usable).max())
    over: dict[Killer, float] = {name: value / limit for name, (value, limit) in names.items() if math.isfinite(limit)}
    over["memory"] = share
    worst = max(over, key=lambda name: over[name] if not math.isnan(over[name]) else 0.0)
    if worst == "memory":
        return worst, f"its nearest candidate needs {share:.3g} times a device's usable memory"
    value, limit = names[worst]
    return worst, f"its nearest candidate takes {value:.4g} s, the bound less its margin is {limit:.4g} s"


def _on_clock(setting: Setting, best: Best, clock: Clock) -> Points:
    """The candidate predicted again, every figure; policies other than rra keep what their search saw."""
    if best.policy != "rra":
        return best.points
    other = dataclasses.replace(setting, conditions=dataclasses.replace(setting.conditions, clock=clock))
    evaluate = rra_evaluator(other, best.placed, best.encode_micro_batches, best.decode_micro_batches, with_tpot=True)
    return evaluate(best.points.encode_batch, best.points.decode_iterations)


def _finite(points: Points | None, name: str) -> float | None:
    value = math.nan if points is None else float(getattr(points, name)[0])
    return value if math.isfinite(value) else None


def _stage_predictions(setting: Setting, best: Best, points: Points) -> tuple[StagePrediction, ...]:
    """Each stage's work in a period; empty where encode and decode stand apart, whose stages overlap."""
    stages = best.placed.stages
    if any(stage.role != "both" for stage in stages):
        return ()
    m_e, m_d = best.encode_micro_batches, best.decode_micro_batches
    iterations, period = int(points.decode_iterations[0]), float(points.period_s[0])
    if len(stages) == 1:
        encode, decode = points.encode_s, points.decode_phase_s / iterations
    else:
        pipeline = best.placed.pipeline
        steady = residents(setting.lengths, iterations)
        mean_rows = float(points.encode_batch[0]) * float(steady.rows.mean())
        encode = m_e * pipeline.encode_s(np.array(float(points.encode_batch[0]) / m_e))
        decode = m_d * pipeline.decode_s(np.array(mean_rows / m_d), np.array(float(steady.context.mean())))
    return tuple(
        StagePrediction(float(e), float(d), min(1.0, (float(e) + iterations * float(d)) / period))
        for e, d in zip(encode, decode, strict=True)
    )


def _worst_mark(best: Best) -> MarkName:
    """Costs know whether anything behind them is an estimate; interpolated otherwise."""
    return "estimated" if any(stage.unit.estimated for stage in best.placed.pipeline.stages) else "interpolated"


def _memory(setting: Setting, best: Best, plan: Plan) -> tuple[StageMemory, ...]:
    """Bytes per device of every stage, in all what the search counted for the candidate.

    Weights and slots are counted by the plan's own schedule; pages take what tokens take, temporaries the rest.
    """
    request = setting.request
    table = memory_table(
        request.spec, plan.schedule, plan.buckets, request.dtype, request.cache_dtype, request.cache_layout
    )
    found = []
    for index, stage in enumerate(plan.schedule.stages):
        memory = next(each for each in table if each.stage == index)
        kind = best.placed.kinds[index]
        total = math.ceil(float(best.points.memory_bytes[index, 0]))
        temporary, payload = memory.temporary_bytes + memory.counts_bytes, memory.payload_bytes
        cache = memory.cache_bytes
        if request.cache_layout == "paged" and stage.role != "encode":
            cache = max(0, total - memory.weights_bytes - payload - temporary)
        payload = max(0, min(payload, total - memory.weights_bytes - cache))
        found.append(
            StageMemory(
                stage=index,
                device_kind=kind,
                weights_bytes=memory.weights_bytes,
                cache_bytes=cache,
                payload_bytes=payload,
                temporary_bytes=max(0, total - memory.weights_bytes - cache - payload),
                capacity_bytes=setting.cluster.kind(kind).memory_bytes,
                usable_bytes=int(setting.usable_bytes(kind)),
            )
        )
    return tuple(found)


def policies_of(names: tuple[str, ...]) -> tuple[Policy, ...]:
    """Checked names, in the order of the house."""
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: {name!r} is unknown; choose of {', '.join(POLICIES)}")
    if not names:
        raise ValueError(f"policies: none given; choose of {', '.join(POLICIES)}")
    return tuple(policy for policy in POLICIES if policy in names)
