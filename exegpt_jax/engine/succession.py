"""From one plan to the next on the stages that run: weights shared, programs compiled behind, rows carried over.

    prepare (a background thread: compiles, executes nothing) -> Succession -> take_over (the Runner's, between phases)

A plan that asks for fewer rows than a single stage has takes them all (`solver.plan.in_place`): then little need be
compiled, and where there is room for its N_D, next to nothing. Where the cache gets other rows, the old one is copied
into the new one, if the accounting says that both fit at once; else, where the slots lie in other parts, and where
encode and decode are apart, the devices are drained first and the old one is freed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exegpt_jax.engine.apart.executor import WaaExecutor
from exegpt_jax.engine.api import Executor
from exegpt_jax.engine.compiling import Program, Recipe, compile_all, compile_behind
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.engine.pipeline.stage_programs import StageRecipes, part_plan
from exegpt_jax.engine.programs import Recipes
from exegpt_jax.sharding.stage import Stage
from solver.facts.model_spec import ModelSpec
from solver.plan.in_place import in_place_of
from solver.plan.memory import memory_table
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan
from solver.plan.under_way import works_apart


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
        return self.engine.compiled + (self.resize is not None)

    def take_over(self, executor: Executor) -> Executor:
        """The same executor under the new plan; where it raises, under the old one."""
        assert isinstance(executor, LocalExecutor)
        if self.carries:
            executor.go_on(self.engine, self.resize)
        else:
            executor.start_over(self.engine)
        return executor


@dataclasses.dataclass(frozen=True)
class PipelineSuccession:
    """A plan on several stages that run already.

    Attributes:
      executor: compiled, without a cache.
      resizes: as `PipelineExecutor.take_over` has them.
      compiled: programs, on all stages.
    """

    executor: PipelineExecutor
    resizes: tuple[Program | None, ...] | None
    compiled: int

    @property
    def plan(self) -> Plan:
        return self.executor.plan

    @property
    def carries(self) -> bool:
        return self.resizes is not None

    def take_over(self, executor: Executor) -> Executor:
        assert isinstance(executor, PipelineExecutor)
        self.executor.take_over(executor, self.resizes)
        return self.executor


@dataclasses.dataclass(frozen=True)
class ApartSuccession:
    """A plan whose encode and decode stages are apart and run already.

    Attributes:
      executor: compiled, without a cache.
      compiled: programs, on all stages and between them.
      carries: rows would be on their way between the sides at any time.
    """

    executor: WaaExecutor
    compiled: int
    carries: bool = False

    @property
    def plan(self) -> Plan:
        return self.executor.plan

    def take_over(self, executor: Executor) -> Executor:
        assert isinstance(executor, WaaExecutor)
        self.executor.take_over(executor)
        return self.executor


def stages_of(executor: Executor) -> tuple[Stage, ...] | None:
    """The stages of an executor that another plan could go on with; None of one that has none here."""
    if isinstance(executor, LocalExecutor):
        return (executor.engine.stage,)
    if isinstance(executor, PipelineExecutor):
        return tuple(engine.stage for engine in executor.pipeline.engines)
    return executor.stages if isinstance(executor, WaaExecutor) else None


def plan_of(executor: Executor) -> Plan | None:
    """The plan that it runs; None of an executor that has no stages here."""
    if isinstance(executor, LocalExecutor):
        return executor.engine.plan
    return executor.plan if isinstance(executor, PipelineExecutor | WaaExecutor) else None


def same_stages(executor: Executor, plan: Plan) -> bool:
    """Whether the plan runs on the stages that the executor has, with the same layers, devices and numbers."""
    stages, before = stages_of(executor), plan_of(executor)
    if stages is None or before is None or plan.schedule.stages != tuple(stage.stage for stage in stages):
        return False
    if any(getattr(before, name) != getattr(plan, name) for name in ("model", "dtype", "cache_dtype")):
        return False
    apart = works_apart(plan.schedule)
    if apart or isinstance(executor, WaaExecutor):
        return apart and isinstance(executor, WaaExecutor)
    # One stage with micro-batches is worked on like several.
    return isinstance(executor, PipelineExecutor) == (len(stages) > 1 or decode_parts(plan.schedule) > 1)


def prepare(executor: Executor, plan: Plan, usable_bytes: int) -> Succession | PipelineSuccession | ApartSuccession:
    """Compiles the plan for the stages that run; for a thread of its own.

    Args:
      executor: in force; nothing is run on it.
      plan: on the same stages (`same_stages`).
      usable_bytes: what each device may hold.
    """
    stages, before = stages_of(executor), plan_of(executor)
    assert stages is not None, "asked only where stages agree"
    assert before is not None, "asked only where stages agree"

    def compiled() -> Succession | PipelineSuccession | ApartSuccession:
        if isinstance(executor, WaaExecutor):
            other = WaaExecutor(stages, plan, executor.clock)
            return ApartSuccession(other, len(other.compile()))
        if isinstance(executor, PipelineExecutor):
            following = PipelineExecutor(stages, plan, executor.pipeline.clock)
            following.compile(other=executor)
            return pipeline_succession(before, following, usable_bytes)
        assert isinstance(executor, LocalExecutor)
        running = executor.engine
        in_place = in_place_of(running.stage.spec, before, plan, usable_bytes)
        # Where the rows differ, decode programs are compiled in any case.
        fits = in_place.schedule.decode_iterations <= running.most_iterations
        alike = fits and in_place.schedule.max_rows == before.schedule.max_rows
        engine = Engine(stages[0], in_place, running.most_iterations if alike else None)
        engine.warm_up(before=running)
        return succession(before, engine, usable_bytes)

    return compile_behind(compiled)


def succession(before: Plan, engine: Engine, usable_bytes: int) -> Succession:
    """From one plan to that of a warm engine on the same stage."""
    plan, rows = engine.plan, before.schedule.max_rows
    if not carries(engine.stage.spec, before, plan, usable_bytes):
        return Succession(engine, None, carries=False)
    if rows == plan.schedule.max_rows:
        return Succession(engine, None, carries=True)
    (resize,) = _compiled([Recipes(engine.stage, plan).resize(rows)])
    return Succession(engine, resize, carries=True)


def pipeline_succession(before: Plan, executor: PipelineExecutor, usable_bytes: int) -> PipelineSuccession:
    """From one plan to that of a compiled executor on the same stages."""
    plan, compiled = executor.plan, sum(engine.compiled for engine in executor.pipeline.engines)
    stages = [engine.stage for engine in executor.pipeline.decoders]
    if not carries(stages[0].spec, before, plan, usable_bytes):
        return PipelineSuccession(executor, None, compiled)
    rows, now = (part_plan(each).schedule.max_rows for each in (before, plan))
    if rows == now:
        return PipelineSuccession(executor, (None,) * len(stages), compiled)
    resizes = _compiled([StageRecipes(stage, plan).resize(rows) for stage in stages])
    return PipelineSuccession(executor, resizes, compiled + len(resizes))


def carries(spec: ModelSpec, before: Plan, plan: Plan, usable_bytes: int) -> bool:
    """Whether slots stay where they are, in the same cache or in one that each device holds for a moment beside it."""
    same_places = decode_parts(before.schedule) == decode_parts(plan.schedule)
    if before.cache_tokens != plan.cache_tokens or not same_places:
        return False
    if before.schedule.max_rows == plan.schedule.max_rows:
        return True
    tables = [memory_table(spec, p.schedule, p.buckets, p.dtype, p.cache_dtype) for p in (plan, before)]
    return all(
        new.total_bytes + old.cache_bytes + old.counts_bytes <= usable_bytes for new, old in zip(*tables, strict=True)
    )


def _compiled(recipes: Sequence[Recipe]) -> tuple[Program, ...]:
    return compile_all(recipes, lambda name, done, total: None)
