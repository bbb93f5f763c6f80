"""From a model directory and a Plan to a warm executor of exactly that plan: its stages, degrees and micro-batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from exegpt_jax.runner.warm import (
    Assembled,
    Compiled,
    Say,
    device_bytes,
    keep_programs,
    out_of_memory_named,
    silent,
    warm,
)
from exegpt_jax.weights.loading import load_stage
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.plan.memory import by_device, memory_table, out_of_memory
from solver.plan.micro_batches import allocated_rows
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from solver.plan.under_way import with_buffers, works_apart


def build_planned(
    directory: Path,
    plan: Plan,
    *,
    memory_fraction: float = 0.9,
    compilation_cache: Path | None = None,
    progress: Say | None = None,
    compiled: Compiled | None = None,
) -> Assembled:
    """Loads and compiles the plan as it stands; its devices are numbers of this process's devices.

    Args:
      directory: Hugging Face model directory or Orbax checkpoint.
      plan: that fits the model and the devices (`solver.plan.fits`).
      memory_fraction, compilation_cache, progress, compiled: as `build` has them.

    Raises:
      ValueError: one line that names the value at fault and the remedy.
    """
    say = progress or silent
    keep_programs(compilation_cache)
    spec, schedule = read_model_spec(directory), plan.schedule
    present = jax.local_devices()
    numbers = [number for stage in schedule.stages for number in stage.devices]
    if _shared(spec, schedule) or max(numbers) >= len(present):
        raise ValueError(
            f"schedule.stages: devices {numbers}, of which this process has 0 to {len(present) - 1} and no stage may "
            "share one, but under rra one of an encoder's with one of its decoder's; on CPU --devices makes more"
        )
    # Micro-batches of equal size may allocate a few rows more.
    allocated = dataclasses.replace(schedule, max_rows=allocated_rows(schedule))
    memory = with_buffers(memory_table(spec, allocated, plan.buckets, plan.dtype, plan.cache_dtype), spec, plan)
    usable_bytes = int(device_bytes(present[numbers[0]], len(set(numbers))) * memory_fraction)
    if max(each.total_bytes for each in by_device(memory)) > usable_bytes:
        raise ValueError(out_of_memory(by_device(memory), usable_bytes))
    say(f"loading {directory} as {plan.dtype}")
    with out_of_memory_named():
        stages = []
        for stage in schedule.stages:
            devices = [present[number] for number in stage.devices]
            stages.append(load_stage(directory, spec, stage, plan.dtype, devices))
        return warm(stages, plan, memory, say, compiled)


def _shared(spec: ModelSpec, schedule: Schedule) -> bool:
    """Whether a device is in two stages that cannot share it: only phases that take turns can."""
    apart = works_apart(schedule)
    groups: dict[bool, list[int]] = {}
    for stage in schedule.stages:
        groups.setdefault(not apart and not spec.cached_layers(stage.layers), []).extend(stage.devices)
    return any(len(set(devices)) < len(devices) for devices in groups.values())
