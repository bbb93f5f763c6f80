"""From a command's flags to something a Runner can run: plan, warm executor, and what the model knows about text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from exegpt_jax.engine.api import Executor
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.loop import Runner
from exegpt_jax.text.prompts import ModelText
from serving.flags.shared import schedule_arguments
from serving.plans.planned import fitting_plan, predictor_of
from serving.plans.replanning import following_of
from serving.progress import Display, WarmUpBar
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.plan.memory import memory_table
from solver.plan.plan import Plan, make_plan
from solver.plan.schedule import Schedule, StageSpec
from solver.plan.timeline import Predictor

if TYPE_CHECKING:
    from exegpt_jax.engine.compiling import Program

_FAKE_ENCODE_BATCH = 8
_FAKE_DECODE_ITERATIONS = 8
_FAKE_MAX_ROWS = 32
_FAKE_CACHE_TOKENS = 1024
_FAKE_TOKEN_BUDGET = 256


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served, loaded and warm.

    Attributes:
      plan, executor, text: of the model.
      predictor: what the plan expects of its phases, where that is known.
      cache_bytes: of a plan: what its cache takes of the fullest device, as the executor counts.
      follower: follows the traffic, where that is asked for.
    """

    plan: Plan
    executor: Executor
    text: ModelText
    cache_bytes: Callable[[Plan], int]
    predictor: Predictor | None = None
    follower: Follower | None = None


def assemble(directory: Path, values: flags.FlagValues, display: Display) -> Service:
    """Loads and compiles everything: the plan of --plan, or what the flags say.

    Raises ValueError with one line that names what to change.
    """
    service = _assembled(directory, values, display)
    spec = read_model_spec(directory)
    following = following_of(directory, values, spec, service.plan, service.predictor, display)
    return dataclasses.replace(service, predictor=following.predictor, follower=following.follower)


def _assembled(directory: Path, values: flags.FlagValues, display: Display) -> Service:
    if values.plan is not None:
        return _assemble_planned(directory, values, display)
    if values.engine == "fake":
        return _assemble_fake(directory, values)
    # Only here does jax come in.
    from exegpt_jax.runner.build import build

    with display.working("loading and compiling"):
        arguments = schedule_arguments(values)
        built = build(directory, **arguments, progress=display.say, compiled=WarmUpBar(display))
    for line in program_table(built.programs):
        display.say(line)
    text = _text(directory, built.spec.vocab_size, built.plan)
    return Service(built.plan, built.executor, text, functools.partial(_cache_bytes, built.spec))


def _assemble_planned(directory: Path, values: flags.FlagValues, display: Display) -> Service:
    """The plan as it stands; it is checked before anything is loaded."""
    spec = read_model_spec(directory)
    fake = values.engine == "fake"
    plan = fitting_plan(directory, values.plan, None if fake else _device_kinds())
    predictor = predictor_of(plan, spec, values.profile, values.cluster, display)
    executor: Executor
    cache_bytes: Callable[[Plan], int] = functools.partial(_cache_bytes, spec)
    if fake:
        from exegpt_jax.testing.fake import FakeExecutor, fake_cache_bytes

        cache_bytes = fake_cache_bytes
        executor = FakeExecutor(plan, spec.vocab_size, step_s=values.fake_step_s)
    else:
        from exegpt_jax.runner.build_planned import build_planned

        with display.working("loading and compiling"):
            built = build_planned(
                directory,
                plan,
                memory_fraction=values.memory_fraction,
                compilation_cache=schedule_arguments(values)["compilation_cache"],
                progress=display.say,
                compiled=WarmUpBar(display),
            )
        for line in program_table(built.programs):
            display.say(line)
        executor = built.executor
    return Service(plan, executor, _text(directory, spec.vocab_size, plan), cache_bytes, predictor)


def _device_kinds() -> list[str]:
    """Of the devices of this process, by number."""
    import jax

    from exegpt_jax.profiler.measure import device_kind_of

    return [device_kind_of(device) for device in jax.local_devices()]


def program_table(programs: Sequence[Program]) -> list[str]:
    """Every compiled program, the seconds it took, and the bytes it needs beside its arguments."""
    width = max(len(program.name) for program in programs)
    head = f"{'program':<{width}}  {'compiled s':>10}  {'temporary bytes':>15}"
    return [head, *(f"{p.name:<{width}}  {p.seconds:>10.2f}  {p.temporary_bytes:>15,}" for p in programs)]


def _assemble_fake(directory: Path, values: flags.FlagValues) -> Service:
    """The shapes of the model and the schedule of the flags, without weights."""
    from exegpt_jax.testing.fake import FakeExecutor, fake_cache_bytes

    spec = read_model_spec(directory)
    policy = values.policy
    rows = values.max_rows or _FAKE_MAX_ROWS
    encode_batch = values.encode_batch or min(_FAKE_ENCODE_BATCH, rows)
    cache_tokens = values.cache_tokens or min(_FAKE_CACHE_TOKENS, spec.max_positions)
    schedule = Schedule(
        policy=policy,
        encode_batch=encode_batch,
        decode_iterations=values.decode_iterations or _FAKE_DECODE_ITERATIONS,
        decode_batch=values.decode_batch or rows,
        max_rows=rows,
        stages=(StageSpec("both", (0, spec.num_layers), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=encode_batch,
        token_budget=(values.token_budget or _FAKE_TOKEN_BUDGET) if policy == "chunked" else 0,
    )
    plan = make_plan(
        spec,
        schedule,
        model="fake",
        dtype="float32",
        cache_dtype="float32",
        cache_tokens=cache_tokens,
        max_prompt_tokens=values.max_prompt_tokens or max(cache_tokens // 2, 1),
    )
    executor = FakeExecutor(plan, spec.vocab_size, step_s=values.fake_step_s)
    return Service(plan, executor, _text(directory, spec.vocab_size, plan), fake_cache_bytes)


def _text(directory: Path, vocab_size: int, plan: Plan) -> ModelText:
    return ModelText.load(
        directory,
        vocab_size=vocab_size,
        max_prompt_tokens=plan.max_prompt_tokens,
        cache_tokens=plan.cache_tokens,
    )


def _cache_bytes(spec: ModelSpec, plan: Plan) -> int:
    table = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype, plan.cache_layout)
    return max(memory.cache_bytes for memory in table)


def keep_timeline(runner: Runner, values: flags.FlagValues) -> None:
    """Writes the Chrome trace if --timeline asks for it."""
    path: str | None = values.timeline
    if path is not None:
        runner.timeline.write_chrome_trace(Path(path))
