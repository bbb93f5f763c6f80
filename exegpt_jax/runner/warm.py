"""From loaded stages and a Plan to a warm executor; what `build` and `build_planned` share.

How much memory a device has, where compiled programs are kept, and a device that runs out as one clear line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from exegpt_jax.engine.apart.executor import WaaExecutor
from exegpt_jax.engine.api import EngineError
from exegpt_jax.engine.compiling import Program, keep_on_disk
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.engine.pipeline.executor import PipelineExecutor
from exegpt_jax.sharding.stage import Stage
from solver.facts.model_spec import ModelSpec
from solver.plan.memory import DeviceMemory
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan
from solver.plan.under_way import works_apart

Say = Callable[[str], None]
Compiled = Callable[[str, int, int], None]

_REPORT_S = 5.0
_DEFAULT_COMPILATION_CACHE = Path("~/.cache/exegpt_jax/programs")


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A plan and what runs it.

    Attributes:
      plan: with every control variable.
      executor: warm.
      spec: of the model.
      programs: every compiled program.
      memory: what each device holds, by the accounting.
    """

    plan: Plan
    executor: LocalExecutor | PipelineExecutor | WaaExecutor
    spec: ModelSpec
    programs: tuple[Program, ...]
    memory: tuple[DeviceMemory, ...]


def silent(line: str) -> None:
    """Nobody waits."""


def warm(
    stages: Sequence[Stage], plan: Plan, memory: tuple[DeviceMemory, ...], say: Say, compiled: Compiled | None
) -> Assembled:
    """Compiles every program of the plan on its loaded stages."""
    said_s = time.monotonic()

    def report_now_and_then(name: str, done: int, total: int) -> None:
        nonlocal said_s
        if done == total or time.monotonic() - said_s > _REPORT_S:
            said_s = time.monotonic()
            say(f"compiled {done} of {total} programs")

    report = compiled or report_now_and_then
    schedule = plan.schedule
    executor: LocalExecutor | PipelineExecutor | WaaExecutor
    if works_apart(schedule):
        executor = WaaExecutor(stages, plan)
        programs = executor.warm_up(report)
    elif len(stages) == 1 and decode_parts(schedule) == 1:
        engine = Engine(stages[0], plan)
        programs = engine.warm_up(report)
        executor = LocalExecutor(engine)
    else:
        executor = PipelineExecutor(stages, plan)
        programs = executor.warm_up(report)
    budget = f" token_budget={schedule.token_budget}" if schedule.token_budget else ""
    say(
        f"plan {plan.digest[:12]}: {schedule.policy} encode_batch={schedule.encode_batch} "
        f"decode_iterations={schedule.decode_iterations} decode_batch={schedule.decode_batch} "
        f"max_rows={schedule.max_rows}{budget} cache_tokens={plan.cache_tokens} "
        f"max_prompt_tokens={plan.max_prompt_tokens} stages={len(stages)} "
        f"tensor={','.join(str(stage.tensor) for stage in schedule.stages)} "
        f"micro_batches={decode_parts(schedule)} dtype={plan.dtype}"
    )
    return Assembled(plan, executor, stages[0].spec, programs, memory)


@contextlib.contextmanager
def out_of_memory_named() -> Iterator[None]:
    """A device's own refusal, in spite of the accounting, as one line that names the flags."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, EngineError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first:
            raise ValueError(
                f"memory: the device ran out at start; lower --max_rows, --cache_tokens or --memory_fraction ({first})"
            ) from error
        raise


def device_bytes(device: jax.Device, devices: int) -> int:
    """Memory of one device. Those of the CPU platform share what the machine has available."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    available_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Linux tells apart what is free or can be given back; elsewhere all of it is counted.
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        available_bytes = int(found[0]) * 1024 if found else available_bytes
    return available_bytes // devices


def keep_programs(directory: Path | None) -> None:
    """Compiled programs outlive the process; a place that somebody chose already is kept."""
    if directory is not None:
        keep_on_disk(directory.expanduser())
    elif not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, nothing else
            keep_on_disk(_DEFAULT_COMPILATION_CACHE.expanduser())
