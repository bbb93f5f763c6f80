"""Every claim of a plan, checked: stages, memory, prediction, bounds, certificate; one Check for each.

Figures of RRA are derived again in plain loops (`solver.verify.rra`), and its optimality is searched for holes
(`solver.verify.scan`). Of other policies the event simulation gives a second opinion, which the caller passes in.
"""

from __future__ import annotations

import dataclasses
import math

from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.workload import Workload
from solver.plan.memory import DeviceMemory, memory_table
from solver.plan.plan import Plan
from solver.plan.under_way import with_buffers
from solver.verify.residents import share_above
from solver.verify.rra import Answers, Asked, Candidate, Derived, Line, derive
from solver.verify.stage_times import Setting

# Sums in another order agree to about 1e-12; drawn batches of compiled shapes to a percent or two.
EXACT, SAMPLED = 1e-6, 0.03
_BYTES = 1e-3
_DEFAULT_OVERFLOW = 1e-3
# Quantiles by approximation may be this much more likely to be exceeded than was asked.
_QUANTILE_FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Check:
    """One claim: the field it stands in, whether it holds, and what was found."""

    field: str
    holds: bool
    found: str


def check_stages(plan: Plan, spec: ModelSpec, cluster: Cluster) -> list[Check]:
    """Layers are covered once and in order, devices exist, are of one kind and island, and serve one stage each."""
    checks = []
    devices = cluster.devices()
    for role in ("encode", "decode"):
        layers = [stage.layers for stage in plan.schedule.stages if stage.role in (role, "both")]
        ends = [0, *(end for _, end in layers)]
        whole = [first for first, _ in layers] == ends[:-1] and ends[-1] == spec.num_layers
        checks.append(
            Check("schedule.stages", whole, f"layers {list(map(list, layers))} of {spec.num_layers}, to {role}")
        )
    used = [number for stage in plan.schedule.stages for number in stage.devices]
    known = all(0 <= number < len(devices) for number in used)
    schedule = plan.schedule
    pipelines = {"encode": schedule.encode_replicas, "decode": schedule.decode_replicas, "both": 1}
    total = plan.replicas * sum(pipelines[stage.role] * len(stage.devices) for stage in schedule.stages)
    fits = known and len(set(used)) == len(used) and total <= len(devices)
    checks.append(Check("schedule.stages.devices", fits, f"{total} of {len(devices)} devices, {plan.replicas} copies"))
    if known:
        apart = [
            index
            for index, stage in enumerate(plan.schedule.stages)
            if len({(devices[d].kind, devices[d].island) for d in stage.devices}) > 1
        ]
        found = f"stages {apart} spread over islands or kinds" if apart else "each stage within one island"
        checks.append(Check("schedule.stages.tensor", not apart, found))
    return checks


def check_memory(plan: Plan, spec: ModelSpec, cluster: Cluster) -> list[Check]:
    """Bytes as the engine counts them, against the plan's table and the devices."""
    devices = {device.id: device for device in cluster.devices()}
    counted: dict[int, DeviceMemory] = {}
    table = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype, plan.cache_layout)
    for entry in with_buffers(table, spec, plan):
        counted.setdefault(entry.stage, entry)
    checks = []
    if not plan.memory:
        return [Check("memory", False, "empty; a planned plan has an entry for each stage")]
    for stage, claimed in enumerate(plan.memory):
        own = counted[stage]
        kind = cluster.kind(devices[plan.schedule.stages[stage].devices[0]].kind)
        where = f"memory[{stage}]"
        right = claimed.stage == stage and claimed.device_kind == kind.name
        right &= claimed.capacity_bytes == kind.memory_bytes and 0 < claimed.usable_bytes <= kind.memory_bytes
        checks.append(Check(f"{where}.capacity_bytes", right, f"{kind.name} of {kind.memory_bytes} bytes"))
        checks.append(near(f"{where}.weights_bytes", claimed.weights_bytes, own.weights_bytes, _BYTES))
        if plan.cache_layout == "slots":
            checks.append(near(f"{where}.cache_bytes", claimed.cache_bytes, own.cache_bytes, _BYTES))
            total = own.total_bytes
        else:
            total = own.total_bytes - own.cache_bytes + claimed.cache_bytes
        checks.append(near(f"{where}.total_bytes", claimed.total_bytes, total, _BYTES))
        checks.append(Check(where, total <= claimed.usable_bytes, f"{total} of {claimed.usable_bytes} bytes usable"))
    return checks


def candidates_of(plan: Plan) -> list[Candidate]:
    """The plan's point. It states rows of a micro-batch, of the expected rows or of those allocated; where several
    numbers of parts have such rows, each."""
    schedule = plan.schedule
    most = 2 * len(schedule.stages)
    encode = _parts(schedule.encode_batch, schedule.encode_micro_batch, most)
    decode = {
        *_parts(schedule.decode_batch, schedule.micro_batch, most),
        *_parts(schedule.max_rows, schedule.micro_batch, most),
    }
    return [
        Candidate(schedule.encode_batch, schedule.decode_iterations, encode_parts, decode_parts)
        for encode_parts in encode
        for decode_parts in sorted(decode)
    ]


def _parts(rows: int, micro_batch: int, most: int) -> list[int]:
    """Numbers of parts into which so many rows give micro-batches of that size; the fewest first."""
    fewest = math.ceil(rows / micro_batch)
    return [fewest, *(parts for parts in range(fewest + 1, most + 1) if math.ceil(rows / parts) == micro_batch)]


def asked_of(plan: Plan) -> Asked:
    assert plan.bounds is not None, "checked before"
    bounds = plan.bounds
    return Asked(
        bounds.latency_percentile, bounds.ttft_percentile, bounds.tpot_percentile, plan.compaction, plan.delivery
    )


def derive_plan(plan: Plan, spec: ModelSpec, setting: Setting, workload: Workload) -> Derived:
    """The plan's own figures, of one replica; of several readings the one nearest to what it predicts."""
    padded = any(profile.padded for profile in setting.profiles.values())
    line, answers, asked = Line(setting, plan.schedule.stages), Answers(workload, spec.first_token), asked_of(plan)
    found = [derive(line, answers, each, asked, plan.buckets if padded else None) for each in candidates_of(plan)]
    claimed = plan.prediction.throughput_rps / plan.replicas if plan.prediction is not None else 0.0
    return min(found, key=lambda derived: abs(derived.throughput_rps - claimed))


def check_prediction(plan: Plan, spec: ModelSpec, setting: Setting, workload: Workload) -> list[Check]:
    """RRA: the prediction against figures derived again; the bounds against those."""
    own, claimed = derive_plan(plan, spec, setting, workload), plan.prediction
    assert claimed is not None, "checked before"
    tolerance = SAMPLED if any(profile.padded for profile in setting.profiles.values()) else EXACT
    checks = [
        near("prediction.throughput_rps", claimed.throughput_rps, own.throughput_rps * plan.replicas, tolerance),
        near("prediction.latency_s", claimed.latency_s, own.latency_s, tolerance),
        near("prediction.encode_s", claimed.encode_s, own.encode_s, tolerance),
    ]
    for name, value in (
        ("ttft_s", own.ttft_s),
        ("tpot_s", own.tpot_s),
        ("period_s", own.period_s),
        ("decode_phase_s", own.decode_phase_s),
        ("decode_batch", own.decode_batch),
    ):
        if (stated := getattr(claimed, name)) is not None:
            checks.append(near(f"prediction.{name}", stated, value, tolerance))
    checks += _check_rows(plan, spec, workload)
    bounds = plan.bounds
    assert bounds is not None, "checked before"
    limits = [("tpot_s", own.tpot_s, bounds.tpot_s)]
    if bounds.bound_from == "encode":
        limits += [("latency_s", own.latency_s, bounds.latency_s), ("ttft_s", own.ttft_s, bounds.ttft_s)]
    for name, value, limit in limits:
        if limit is not None:
            checks.append(Check(f"bounds.{name}", value <= limit * (1 + tolerance), f"{value:.6g} of {limit:.6g} s"))
    return checks


def _check_rows(plan: Plan, spec: ModelSpec, workload: Workload) -> list[Check]:
    """Allocated rows are exceeded no more often than the plan says: the exact distribution of residents."""
    overflow = plan.margins.overflow if plan.margins is not None else _DEFAULT_OVERFLOW
    schedule = plan.schedule
    answers = Answers(workload, spec.first_token)
    late = plan.delivery == "phase+1"
    share = share_above(answers, schedule.encode_batch, schedule.decode_iterations, schedule.most_rows, late=late)
    found = f"{share:.2e} of periods exceed {schedule.most_rows} rows, {overflow:.0e} may"
    return [Check("schedule.max_rows", share <= _QUANTILE_FACTOR * overflow, found)]


def check_found(plan: Plan, found: dict[str, float], tolerance: float) -> list[Check]:
    """Figures of the prediction against a second opinion, by field name."""
    assert plan.prediction is not None, "checked before"
    claimed = {name: getattr(plan.prediction, name) for name in found}
    return [
        near(f"prediction.{name}", claimed[name], value, tolerance)
        for name, value in found.items()
        if claimed[name] is not None
    ]


def check_certificate(plan: Plan) -> list[Check]:
    """Bound, gap and objective fit each other and the prediction; runners-up are no better."""
    certificate, claimed = plan.certificate, plan.prediction
    assert claimed is not None, "checked before"
    if certificate is None:
        return [Check("certificate", False, "null; this plan proves nothing")]
    delta = plan.margins.profile_delta if plan.margins is not None else 0.0
    objectives = [claimed.throughput_rps * factor for factor in (1.0, 1 / (1 + delta), 1 - delta)]
    near = any(math.isclose(certificate.objective_rps, value, rel_tol=EXACT) for value in objectives)
    checks = [
        Check("certificate.objective_rps", near, f"{certificate.objective_rps:.6g}, predicted {objectives[0]:.6g}"),
        Check(
            "certificate.gap",
            math.isclose(certificate.gap, certificate.best_bound_rps / certificate.objective_rps - 1, abs_tol=1e-9),
            f"{certificate.gap:.3g}, bound {certificate.best_bound_rps:.6g}",
        ),
    ]
    for index, other in enumerate(plan.runners_up):
        if other.throughput_rps is not None and other.killed_by == "slower":
            below = other.throughput_rps <= certificate.objective_rps * (1 + max(EXACT, certificate.allowed_gap))
            found = f"{other.policy} reaches {other.throughput_rps:.6g}"
            checks.append(Check(f"runners_up[{index}].throughput_rps", below, found))
    return checks


def near(field: str, claimed: float, own: float, tolerance: float) -> Check:
    """Whether a claim is what was derived again."""
    holds = math.isclose(claimed, own, rel_tol=tolerance, abs_tol=1e-12)
    return Check(field, holds, f"{claimed:.6g}, derived again {own:.6g}")
