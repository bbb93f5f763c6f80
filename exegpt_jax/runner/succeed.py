"""The successor of a running plan: on the same stage where the new plan agrees with it, else beside it on its own.

Called from a thread of its own. Stages that differ get weights and cache of their own, loaded while the old ones run,
if every device holds both; the old ones are then drained.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import jax

from exegpt_jax.engine import succession
from exegpt_jax.engine.api import Executor
from exegpt_jax.engine.compiling import compile_behind
from exegpt_jax.runner.build_planned import build_planned
from exegpt_jax.runner.next_plan import Successor
from exegpt_jax.runner.warm import device_bytes
from solver.facts.model_config import read_model_spec
from solver.plan.memory import format_bytes, memory_table
from solver.plan.plan import Plan


@dataclasses.dataclass(frozen=True)
class Beside:
    """A plan on stages of its own, warm and empty."""

    plan: Plan
    executor: Executor
    compiled: int
    carries: bool = False

    def take_over(self, executor: Executor) -> Executor:
        """The drained one's weights and cache are free as soon as nobody holds it any more."""
        return self.executor


def successor_of(directory: Path, executor: Executor, plan: Plan, memory_fraction: float = 0.9) -> Successor:
    """Compiles a plan behind the one that runs.

    Args:
      directory: of the model.
      executor: in force; only looked at.
      plan: to come; it names this process's devices by number, as the one in force does.
      memory_fraction: share of a device's memory that may be used.

    Raises:
      ValueError: some device cannot hold both.
    """
    if succession.same_stages(executor, plan):
        return succession.prepare(executor, plan, _usable_bytes(plan, memory_fraction))
    before = succession.plan_of(executor)
    assert before is not None, "other executors take no other plan"
    held: collections.Counter[int] = collections.Counter()
    for each in (before, plan):
        spec = read_model_spec(directory)
        for memory in memory_table(spec, each.schedule, each.buckets, each.dtype, each.cache_dtype):
            held[memory.device] += memory.total_bytes
    usable_bytes = _usable_bytes(plan, memory_fraction)
    for device, total in held.items():
        if total > usable_bytes:
            raise ValueError(
                f"memory: device {device} cannot hold the plan in force and the next, {format_bytes(total)} of "
                f"{format_bytes(usable_bytes)}; serve the new plan in a new process"
            )
    built = compile_behind(lambda: build_planned(directory, plan, memory_fraction=memory_fraction))
    return Beside(plan, built.executor, len(built.programs))


def _usable_bytes(plan: Plan, memory_fraction: float) -> int:
    stage = plan.schedule.stages[0]
    return int(device_bytes(jax.local_devices()[stage.devices[0]], len(stage.devices)) * memory_fraction)
