"""Small planning problems with their best RRA plan, found by evaluating everything: plans to check, draw and edit."""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.profile_file import shape_digest
from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.certificate import Certificate, Margins, RunnerUp
from solver.plan.inputs import inputs_of
from solver.plan.memory import memory_table
from solver.plan.plan import Plan, make_plan
from solver.plan.prediction import Prediction, StageMemory, StagePrediction
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.from_plan import machines_of
from solver.simulate.lengths import lengths_of
from solver.simulate.memory import MemoryModel
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from tests.solver.planner_cases import random_profile, random_workload, small_cluster, small_spec

USABLE = 0.9
STAGES = {
    1: (StageSpec("both", (0, 4), (0,), 1),),
    2: (StageSpec("both", (0, 1), (0, 1), 2), StageSpec("both", (1, 4), (2, 3), 2)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    spec: ModelSpec
    cluster: Cluster
    profile: Profile
    workload: Workload
    plan: Plan


def solved(
    seed: int = 0,
    *,
    stages: int = 1,
    bound_factor: float | None = None,
    ragged: bool = False,
    padded: bool = False,
    most_batch: int = 40,
    most_rows: int = 1000,
    memory_bytes: int = 8 * 2**30,
) -> Case:
    """The best plan over B_E up to `most_batch` and every N_D; the bound is `bound_factor` times the least latency."""
    rng = np.random.default_rng(seed)
    spec = small_spec()
    cluster = small_cluster(per_island=1 if stages == 1 else 4)
    kind = dataclasses.replace(cluster.kinds[0], memory_bytes=memory_bytes)
    cluster = dataclasses.replace(cluster, kinds=(kind,))
    profile = random_profile(
        rng, spec, tensors=(1,) if stages == 1 else (1, 2, 4), shape=shape_digest(spec), ragged=ragged, padded=padded
    )
    workload = random_workload(rng)
    lengths = lengths_of(workload, spec.first_token)
    sizes = {"cache_tokens": workload.most_tokens, "max_prompt_tokens": workload.most_input}
    empty = _plan(spec, Schedule("rra", 1, 1, 1, most_rows, STAGES[stages], most_rows, 1), sizes)
    pipeline = machines_of(empty, spec, cluster, (profile,), workload).decode
    batch, iterations = (
        grid.ravel() for grid in np.meshgrid(np.arange(1, most_batch + 1), np.arange(1, lengths.most_decode + 1))
    )
    parts = np.minimum(batch, stages)
    model = MemoryModel(spec, "float32", "float32", workload.most_tokens, workload.most_input)
    conditions = Conditions(cache_tokens=workload.most_tokens)
    padding = None
    if padded:
        from solver.simulate.padding import Padding

        padding = Padding(workload.most_tokens, workload.most_input)
    points = evaluate_rra(
        pipeline, lengths, conditions, batch, iterations, parts, stages, memory=model, padding=padding
    )
    keeps = (points.memory_bytes <= USABLE * memory_bytes).all(axis=0) & (points.throughput_rps > 0)
    # A plan states rows of a micro-batch: only where those give the number of parts again is it told what was meant.
    peaks = np.ceil(np.minimum(points.decode_batch, points.max_rows))
    keeps &= np.ceil(peaks / np.ceil(peaks / stages)) == stages
    keeps &= np.ceil(batch / np.ceil(batch / parts)) == parts
    bound = None if bound_factor is None else float(points.latency_s[keeps].min() * bound_factor)
    if bound is not None:
        keeps &= points.latency_s <= bound
    best = int(np.argmax(np.where(keeps, points.throughput_rps, 0.0)))
    rows, peak = int(points.max_rows[best]), int(np.ceil(points.decode_batch[best]))
    schedule = Schedule(
        "rra", int(batch[best]), int(iterations[best]), min(peak, rows), rows, STAGES[stages],
        -(-min(peak, rows) // stages), -(-int(batch[best]) // int(parts[best])),
    )  # fmt: skip
    plan = _plan(spec, schedule, sizes)
    rate = float(points.throughput_rps[best])
    plan = dataclasses.replace(
        plan,
        prediction=Prediction(
            throughput_rps=rate,
            latency_s=float(points.latency_s[best]),
            encode_s=float(points.encode_s[best]),
            iteration_s=float(points.decode_phase_s[best]) / int(iterations[best]),
            ttft_s=float(points.ttft_s[best]),
            tpot_s=float(points.tpot_s[best]),
            period_s=float(points.period_s[best]),
            decode_phase_s=float(points.decode_phase_s[best]),
            decode_batch=float(points.decode_batch[best]),
            stages=tuple(StagePrediction(0.002 + 0.001 * i, 0.001, 0.9 - 0.1 * i) for i in range(stages)),
            worst_mark="interpolated",
        ),
        inputs=inputs_of("toy", spec, cluster, (profile,), workload),
        bounds=Bounds(latency_s=bound),
        memory=_memory(plan, spec, memory_bytes),
        certificate=Certificate.of(rate, rate, 0.0, batch.size, batch.size, "node-limited"),
        runners_up=(RunnerUp("static", "slower", "waits for its longest answer", rate / 2),),
        margins=Margins(0.0, -0.1, 0.1, 10.0, 20.0, 1e-3),
    )
    return Case(spec, cluster, profile, workload, plan)


def _plan(spec: ModelSpec, schedule: Schedule, sizes: dict[str, int]) -> Plan:
    return make_plan(spec, schedule, model="toy", dtype="float32", cache_dtype="float32", **sizes)


def _memory(plan: Plan, spec: ModelSpec, capacity: int) -> tuple[StageMemory, ...]:
    table = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype)
    by_stage = {entry.stage: entry for entry in table}
    return tuple(
        StageMemory(
            stage, "x", m.weights_bytes, m.cache_bytes, m.payload_bytes, m.temporary_bytes + m.counts_bytes, capacity,
            int(USABLE * capacity),
        )
        for stage, m in sorted(by_stage.items())
    )  # fmt: skip
