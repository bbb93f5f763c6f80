"""From a model directory and a Plan to a warm executor of exactly that plan. One stage so far."""

from __future__ import annotations

from pathlib import Path

import jax

from exegpt_jax.runner.build import Assembled, Say, device_bytes, keep_programs, out_of_memory_named, silent, warm
from exegpt_jax.weights.loading import load_stage
from solver.facts.model_config import read_model_spec
from solver.plan.memory import memory_table, out_of_memory
from solver.plan.plan import Plan


def build_planned(
    directory: Path,
    plan: Plan,
    *,
    memory_fraction: float = 0.9,
    compilation_cache: Path | None = None,
    progress: Say | None = None,
) -> Assembled:
    """Loads and compiles the plan as it stands; its devices are numbers of this process's devices.

    Args:
      directory: Hugging Face model directory or Orbax checkpoint.
      plan: that fits the model and the devices (`solver.plan.fits`).
      memory_fraction, compilation_cache, progress: as `build` has them.

    Raises:
      ValueError: one line that names the value at fault and the remedy.
    """
    say = progress or silent
    stages = plan.schedule.stages
    if len(stages) > 1:
        raise ValueError(f"schedule.stages: {len(stages)} stages cannot be run yet; plan with --devices=1")
    keep_programs(compilation_cache)
    spec = read_model_spec(directory)
    stage = stages[0]
    devices = [jax.local_devices()[number] for number in stage.devices]
    memory = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype)
    usable_bytes = int(device_bytes(devices[0], len(devices)) * memory_fraction)
    if max(each.total_bytes for each in memory) > usable_bytes:
        raise ValueError(out_of_memory(memory, usable_bytes))
    say(f"loading {directory} as {plan.dtype}")
    with out_of_memory_named():
        loaded = load_stage(directory, spec, stage, plan.dtype, devices)
        return warm(loaded, plan, memory, say)
