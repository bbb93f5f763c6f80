"""From one plan to the next on the stage that runs: weights shared, programs compiled behind, rows carried over.

    prepare (a background thread: compiles, executes nothing) -> Succession -> take_over (the Runner's, between phases)

Where the cache has other rows, the old one is copied into the new one, if the accounting says that both fit at once;
else the devices are drained first and the old one is freed.
"""

from __future__ import annotations

import dataclasses

from exegpt_jax.engine.api import Executor
from exegpt_jax.engine.compiling import Program, compile_all, compile_behind
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.engine.programs import Recipes
from solver.facts.model_spec import ModelSpec
from solver.plan.memory import memory_table
from solver.plan.plan import Plan


@dataclasses.dataclass(frozen=True)
class Succession:
    """A plan on a stage that runs already.

    Attributes:
      engine: warm, over the same weights.
      resize: makes its cache of the one in force; None where that stays as it is, or where nothing is carried.
      carries: rows stay; else there must be none.
    """

    engine: Engine
    resize: Program | None
    carries: bool

    @property
    def plan(self) -> Plan:
        return self.engine.plan

    @property
    def compiled(self) -> int:
        return len(self.engine.programs) + (self.resize is not None)

    def take_over(self, executor: Executor) -> Executor:
        """The same executor under the new plan; where it raises, under the old one."""
        assert isinstance(executor, LocalExecutor)
        if self.carries:
            executor.go_on(self.engine, self.resize)
        else:
            executor.start_over(self.engine)
        return executor


def same_stage(executor: Executor, plan: Plan) -> bool:
    """Whether the plan runs on the one stage that the executor has, with the same layers, devices and numbers."""
    if not isinstance(executor, LocalExecutor):
        return False
    before = executor.engine.plan
    alike = all(getattr(before, name) == getattr(plan, name) for name in ("model", "dtype", "cache_dtype"))
    return alike and plan.schedule.stages == (executor.engine.stage.stage,)


def prepare(executor: LocalExecutor, plan: Plan, usable_bytes: int) -> Succession:
    """Compiles the plan for the stage that runs; for a thread of its own.

    Args:
      executor: in force; nothing is run on it.
      plan: on the same stage (`same_stage`).
      usable_bytes: what each device may hold.
    """
    stage, before = executor.engine.stage, executor.engine.plan

    def compiled() -> Succession:
        engine = Engine(stage, plan)
        engine.warm_up()
        return succession(before, engine, usable_bytes)

    return compile_behind(compiled)


def succession(before: Plan, engine: Engine, usable_bytes: int) -> Succession:
    """From one plan to that of a warm engine on the same stage."""
    plan, rows = engine.plan, before.schedule.max_rows
    if not carries(engine.stage.spec, before, plan, usable_bytes):
        return Succession(engine, None, carries=False)
    if rows == plan.schedule.max_rows:
        return Succession(engine, None, carries=True)
    (resize,) = compile_all([Recipes(engine.stage, plan).resize(rows)], lambda name, done, total: None)
    return Succession(engine, resize, carries=True)


def carries(spec: ModelSpec, before: Plan, plan: Plan, usable_bytes: int) -> bool:
    """Whether the cache is the same, or each device holds the new plan and, beside it for a moment, the old cache."""
    if before.cache_tokens != plan.cache_tokens:
        return False
    if before.schedule.max_rows == plan.schedule.max_rows:
        return True
    new, old = (
        memory_table(spec, each.schedule, each.buckets, each.dtype, each.cache_dtype)[0] for each in (plan, before)
    )
    return new.total_bytes + old.cache_bytes + old.counts_bytes <= usable_bytes
