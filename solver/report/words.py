"""A plan in words: what it does, what limits it, what it proves. Each function gives lines for people."""

from __future__ import annotations

from solver.plan.bounds import Bounds
from solver.plan.memory import format_bytes
from solver.plan.plan import Plan, Prediction
from solver.plan.schedule import Schedule, StageSpec

# A figure this close to its limit is what stops the plan from doing more; memory comes in whole rows and buckets.
_BINDS = {"s": 0.03, "bytes": 0.08}
_MOST_STAGES = 6

_POLICY_WORDS = {
    "rra": "every device encodes and decodes in turn (RRA)",
    "waa": "some devices encode while others decode, split freely (WAA)",
    "waa-c": "some devices encode while others decode, split by computation (WAA-C)",
    "waa-m": "some devices encode while others decode, split by memory (WAA-M)",
    "static": "a batch runs until its longest answer ends (static batching)",
    "dsi": "a batch runs until its longest answer ends, with batches of its own for both phases (DeepSpeed Inference)",
    "iteration": "after every decode iteration whoever waits and fits is encoded (iteration-level batching)",
    "chunked": "every iteration decodes all rows and encodes a piece of the waiting prompts (chunked prefill)",
    "disaggregated": "some devices encode, others decode with refill every iteration (disaggregation)",
}


def summary(plan: Plan) -> list[str]:
    """A handful of lines: schedule, placement, prediction, memory, proof."""
    lines = [f"policy: {_POLICY_WORDS[plan.schedule.policy]}", f"controls: {controls(plan.schedule)}"]
    lines.append(f"placement: {placement(plan)}")
    if plan.prediction is not None:
        lines.append(f"predicted: {prediction(plan.prediction)}")
    if plan.bounds is not None:
        lines.append(f"bounds: {bounds(plan.bounds)}; {binding(plan)}")
    if plan.memory:
        lines.append(f"memory: {memory(plan)}")
    lines.append(f"proof: {proof(plan)}")
    if plan.margins is not None:
        lines.append(f"margins: {margins(plan)}")
    return lines


def controls(schedule: Schedule) -> str:
    parts = [
        f"encode {schedule.encode_batch} prompts",
        f"decode {schedule.decode_iterations} iterations of about {schedule.decode_batch} rows",
        f"{schedule.max_rows} rows allocated",
    ]
    if schedule.encode_micro_batch < schedule.encode_batch:
        parts.append(f"encode micro-batches of {schedule.encode_micro_batch}")
    if schedule.micro_batch < schedule.decode_batch:
        parts.append(f"decode micro-batches of {schedule.micro_batch}")
    if schedule.token_budget:
        parts.append(f"{schedule.token_budget} tokens an iteration")
    return ", ".join(parts)


def placement(plan: Plan) -> str:
    stages = plan.schedule.stages
    shown = "; ".join(stage_words(stage) for stage in stages[:_MOST_STAGES])
    more = f"; and {len(stages) - _MOST_STAGES} more" if len(stages) > _MOST_STAGES else ""
    copies = f", {plan.replicas} copies" if plan.replicas > 1 else ""
    if (plan.schedule.encode_replicas, plan.schedule.decode_replicas) != (1, 1):
        copies += f", {plan.schedule.encode_replicas} encode and {plan.schedule.decode_replicas} decode pipelines"
    return f"{len(stages)} {'stage' if len(stages) == 1 else 'stages'}{copies}: {shown}{more}"


def stage_words(stage: StageSpec) -> str:
    role = "" if stage.role == "both" else f"{stage.role}s "
    devices = f"device {stage.devices[0]}" if stage.tensor == 1 else f"devices {_ranges(stage.devices)}"
    return f"{role}layers {stage.layers[0]}-{stage.layers[1] - 1} on {devices}"


def prediction(found: Prediction) -> str:
    parts = [f"{found.throughput_rps:.4g} requests a second", f"latency {seconds(found.latency_s)}"]
    if found.latency_with_wait_s is not None:
        parts.append(f"with wait {seconds(found.latency_with_wait_s)}")
    if found.ttft_s is not None:
        parts.append(f"first token after {seconds(found.ttft_s)}")
    if found.tpot_s is not None:
        parts.append(f"{seconds(found.tpot_s)} a token")
    if found.worst_mark is not None:
        parts.append(f"least certain number: {found.worst_mark}")
    return ", ".join(parts)


def bounds(found: Bounds) -> str:
    parts = []
    start = "arrival" if found.bound_from == "arrival" else "the start of encoding"
    if found.latency_s is not None:
        parts.append(f"latency {seconds(found.latency_s)} at p{found.latency_percentile:g} from {start}")
    if found.ttft_s is not None:
        parts.append(f"first token {seconds(found.ttft_s)} at p{found.ttft_percentile:g}")
    if found.tpot_s is not None:
        parts.append(f"{seconds(found.tpot_s)} a token at p{found.tpot_percentile:g}")
    return ", ".join(parts) if parts else "none"


def limits(plan: Plan) -> list[tuple[str, float, float, str]]:
    """(what, predicted, limit, unit) of every limit there is: bounds, and the fullest device's memory."""
    found: list[tuple[str, float, float, str]] = []
    expected, asked = plan.prediction, plan.bounds
    if expected is not None and asked is not None:
        arrival = asked.bound_from == "arrival"
        latency = expected.latency_with_wait_s if arrival else expected.latency_s
        first = expected.ttft_with_wait_s if arrival else expected.ttft_s
        for name, value, limit in (
            ("latency", latency, asked.latency_s),
            ("time to first token", first, asked.ttft_s),
            ("time per output token", expected.tpot_s, asked.tpot_s),
        ):
            if value is not None and limit is not None:
                found.append((name, value, limit, "s"))
    if plan.memory:
        fullest = max(plan.memory, key=lambda m: m.total_bytes / m.usable_bytes)
        found.append((f"memory of stage {fullest.stage}", fullest.total_bytes, fullest.usable_bytes, "bytes"))
    return found


def binding(plan: Plan) -> str:
    """Which limits the plan sits at, margin counted."""
    keep = plan.margins.keep if plan.margins is not None else 1.0
    close = [
        name
        for name, value, limit, unit in limits(plan)
        if value * (keep if unit == "s" else 1.0) >= limit * (1 - _BINDS[unit])
    ]
    if close:
        return f"held back by {' and '.join(close)}"
    return "none of them holds the plan back: more of anything would not be faster"


def memory(plan: Plan) -> str:
    fullest = min(plan.memory, key=lambda m: m.head_room_bytes)
    return (
        f"at most {format_bytes(fullest.total_bytes)} of {format_bytes(fullest.usable_bytes)} usable on a "
        f"{fullest.device_kind} (stage {fullest.stage}): weights {format_bytes(fullest.weights_bytes)}, cache "
        f"{format_bytes(fullest.cache_bytes)}; {format_bytes(fullest.head_room_bytes)} to spare"
    )


def proof(plan: Plan) -> str:
    found = plan.certificate
    if found is None:
        return "none; this plan was not searched for"
    work = f"{found.nodes} nodes, {found.evaluated} candidates evaluated"
    if found.ended == "proven":
        what = "no better plan exists" if found.gap == 0 else f"no plan is more than {found.gap:.3%} better"
        among = f" among what was searched ({found.scope})" if found.scope else ""
        return f"{what}{among}, in this model of the devices ({work})"
    return (
        f"{found.ended}: a better plan, if there is one, reaches at most {found.best_bound_rps:.4g} requests a second, "
        f"{found.gap:.2%} more ({work})"
    )


def margins(plan: Plan) -> str:
    found = plan.margins
    assert found is not None, "asked only where there are margins"
    phases = f" ({found.fluctuation:.1%} more is left for phases that differ)" if found.fluctuation else ""
    return (
        f"bounds hold while times are off by up to {found.profile_delta:.1%}{phases} and the mean output drifts from "
        f"{found.output_drift_low:+.0%} to {found.output_drift_high:+.0%}; plan again when it leaves "
        f"{found.replan_below_tokens:.4g} to {found.replan_above_tokens:.4g} tokens"
    )


def seconds(value: float) -> str:
    """Four digits, in the unit that reads best."""
    if value != value or value == float("inf"):
        return "unbounded"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1 or unit == "us":
            return f"{value * factor:.4g} {unit}"
    raise AssertionError("the last unit always fits")


def _ranges(ids: tuple[int, ...]) -> str:
    """0-3,8 of 0, 1, 2, 3, 8."""
    spans: list[list[int]] = []
    for number in sorted(ids):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def size(value: float) -> str:
    return format_bytes(int(value))
