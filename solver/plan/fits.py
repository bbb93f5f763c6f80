"""Whether a plan fits what it is to run on: refused before anything is loaded, in one line that says what differs.

A plan of `exegpt plan` names its model by the digest of its shapes, since nothing else of the model decides a schedule;
one that was made from flags names the very checkpoint.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Sequence

from solver.facts.model_spec import ModelSpec
from solver.plan.digests import content_digest
from solver.plan.plan import Plan
from solver.plan.schedule import EXECUTED_POLICIES

# What the engine does; a plan that counts on anything else would be another schedule when run.
_DTYPES = ("float32", "bfloat16")
_DONE = {"cache_layout": "slots", "compaction": "phase", "delivery": "phase"}


@dataclasses.dataclass(frozen=True)
class AtHand:
    """What a plan is to run on.

    Attributes:
      directory: of the model, for people.
      spec: its shapes.
      checkpoint: works its digest out, which reads every weight.
      kinds: of the devices, by their number; None where none will be used.
    """

    directory: str
    spec: ModelSpec
    checkpoint: Callable[[], str]
    kinds: Sequence[str] | None


def check_fits(plan: Plan, what: str, found: AtHand) -> None:
    """Raises ValueError that begins with `what`, the plan's file, and names the field and both values."""
    complaint = _engine(plan) or _model(plan, found) or _devices(plan, found.kinds)
    if complaint is not None:
        raise ValueError(f"{what}: {complaint}")


def _engine(plan: Plan) -> str | None:
    if plan.schedule.policy not in EXECUTED_POLICIES:
        choices = ", ".join(EXECUTED_POLICIES)
        return f"schedule.policy: {plan.schedule.policy} cannot be executed; plan with --policies={choices}"
    for name, done in _DONE.items():
        if getattr(plan, name) != done:
            return f"{name}: the plan says {getattr(plan, name)}, this engine does {done}; plan again with that"
    for name, dtype in (("dtype", plan.dtype), ("cache_dtype", plan.cache_dtype)):
        if dtype not in _DTYPES:
            known = " and ".join(_DTYPES)
            return f"{name}: the plan says {dtype}, this engine has {known}; plan with --{name}={_DTYPES[0]}"
    if plan.replicas > 1:
        return (
            f"replicas: the plan runs {plan.replicas} copies, one process runs 1; plan for the devices of one process "
            "with --devices, and start a process for each copy"
        )
    return None


def _model(plan: Plan, found: AtHand) -> str | None:
    remedy = "name the plan's model with --model, or plan for this one"
    if plan.inputs is not None:
        shapes = content_digest(found.spec)
        if plan.inputs.model.digest != shapes:
            return (
                f"inputs.model.digest: the plan was made for {plan.inputs.model.name} (shapes "
                f"{plan.inputs.model.digest[:12]}), {found.directory} has shapes {shapes[:12]}; {remedy}"
            )
    if _is_digest(plan.model) and plan.model != (held := found.checkpoint()):
        return f"model: the plan is of checkpoint {plan.model[:12]}, {found.directory} holds {held[:12]}; {remedy}"
    if plan.first_token != found.spec.first_token:
        return (
            f"first_token: the plan says {plan.first_token}, {found.directory} has {found.spec.first_token}; {remedy}"
        )
    layers = _layers(plan, found, remedy)
    if layers is not None:
        return layers
    if plan.cache_tokens > found.spec.max_positions:
        return (
            f"cache_tokens: the plan's rows hold {plan.cache_tokens} positions, {found.directory} has "
            f"{found.spec.max_positions}; {remedy}"
        )
    return None


def _layers(plan: Plan, found: AtHand, remedy: str) -> str | None:
    """Every layer once in each phase that it works in: an encoder's only encode, its decoder's mainly decode."""
    layers, encoders = found.spec.num_layers, found.spec.encoder_layers
    apart = any(stage.role == "decode" for stage in plan.schedule.stages)
    ranges = {"encode": (0, encoders if encoders and apart else layers), "decode": (encoders, layers)}
    for phase, (first, end) in ranges.items():
        at = first
        for stage in plan.schedule.stages:
            if stage.role not in (phase, "both") or stage.layers[1] <= first:
                continue
            if max(stage.layers[0], first) != at:
                return f"schedule.stages: layer {at} is due to {phase}, a stage begins at {stage.layers[0]}; plan again"
            at = stage.layers[1]
        if at != end:
            return f"schedule.stages: {at} layers {phase}, {found.directory} has {end}; {remedy}"
    return None


def _devices(plan: Plan, kinds: Sequence[str] | None) -> str | None:
    if kinds is None:
        return None
    stages = plan.schedule.stages
    needed = 1 + max(number for stage in stages for number in stage.devices)
    if needed > len(kinds):
        return (
            f"schedule.stages: the plan needs {needed} devices, {len(kinds)} are here; give more (on CPU "
            f"--devices={needed} makes them), or plan for {len(kinds)} with --devices={len(kinds)}"
        )
    for memory in plan.memory:
        for number in stages[memory.stage].devices:
            if kinds[number] != memory.device_kind:
                return (
                    f"memory[{memory.stage}].device_kind: the plan is for {memory.device_kind}, device {number} is "
                    f"{kinds[number]}; run it on such devices, or plan for these"
                )
    return None


def _is_digest(name: str) -> bool:
    """A sha256 in hex, not a name for people."""
    return len(name) == 64 and set(name) <= set(string.hexdigits)
