"""From a model directory and a few wishes to a warm executor: Schedule -> Plan -> stage -> engine -> programs.

What is not given is chosen here and printed: the dtype from the platform, rows from the memory, B_E and N_D from a
short measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax

from exegpt_jax.runner import measure
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
from exegpt_jax.sharding.stage import Stage
from exegpt_jax.weights.digest import checkpoint_digest
from exegpt_jax.weights.loading import load_stage
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.tensor_degree import check_tensor
from solver.plan.memory import DeviceMemory, memory_table, out_of_memory, rows_that_fit
from solver.plan.plan import Plan, encode_call_rows, make_plan
from solver.plan.schedule import FLAG_POLICIES, Policy, Schedule, StageSpec

_MOST_CACHE_TOKENS = 2048
_MOST_ROWS_CPU, _MOST_ROWS = 32, 256
_STATIC_ITERATIONS = 32
# Rows of the largest encode call where a policy refills before every iteration.
_REFILL_BATCH = 8


def build(
    directory: Path,
    *,
    policy: str = "rra",
    encode_batch: int | None = None,
    decode_iterations: int | None = None,
    decode_batch: int | None = None,
    max_rows: int | None = None,
    token_budget: int | None = None,
    tensor: int = 1,
    dtype: str | None = None,
    cache_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    memory_fraction: float = 0.9,
    compilation_cache: Path | None = None,
    progress: Say | None = None,
    compiled: Compiled | None = None,
) -> Assembled:
    """Loads, plans, compiles. None leaves a value to the platform, the memory or a short measurement.

    Args:
      directory: Hugging Face model directory or Orbax checkpoint.
      policy: one of the executed policies; the other wishes are those of `Schedule` and `Plan`.
      memory_fraction: share of a device's memory that may be used.
      compilation_cache: directory of compiled programs; absent: JAX's own setting, else a folder under ~/.cache.
      progress: called with lines for whoever waits.
      compiled: called with each program's name, how many are done and how many there are, of one stage at a time; None
        has `progress` told now and then.

    Raises:
      ValueError: one line that names the value at fault and the remedy.
    """
    say = progress or silent
    keep_programs(compilation_cache)
    spec = read_model_spec(directory)
    devices = jax.local_devices()
    _check(spec, policy, token_budget, tensor, memory_fraction, len(devices))
    on_cpu = devices[0].platform == "cpu"
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    stage = StageSpec("both", (0, spec.num_layers), tuple(device.id for device in devices[:tensor]), tensor)
    length = cache_tokens or min(spec.max_positions, _MOST_CACHE_TOKENS)
    first = Schedule(
        policy=cast(Policy, policy),
        encode_batch=encode_batch or 1,
        decode_iterations=decode_iterations or 1,
        decode_batch=max(decode_batch or 1, 1),
        max_rows=max(max_rows or 1, encode_batch or 1, decode_batch or 1),
        stages=(stage,),
        micro_batch=1,
        encode_micro_batch=1,
        token_budget=_budget(policy, token_budget),
    )

    def plan_of(schedule: Schedule) -> Plan:
        return make_plan(
            spec,
            schedule,
            model=digest,
            dtype=dtype,
            # Updating a bfloat16 cache on CPU takes up to a thousand times longer than a float32 one.
            cache_dtype="float32" if on_cpu else dtype,
            cache_tokens=length,
            max_prompt_tokens=max_prompt_tokens or max(1, length // 2),
        )

    digest = checkpoint_digest(directory)
    usable_bytes = int(device_bytes(devices[0], tensor) * memory_fraction)
    # Static batching never has more rows than its batch.
    rows = max_rows or (encode_batch if policy == "static" else None)
    first = _with_rows(first, rows, spec, plan_of, usable_bytes, on_cpu)
    say(f"loading {directory} as {dtype}")
    with out_of_memory_named():
        loaded = load_stage(directory, spec, stage, dtype, devices[:tensor])
        schedule = _chosen(first, encode_batch, decode_iterations, decode_batch, loaded, plan_of, say)
        plan = plan_of(schedule)
        memory = memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype)
        return warm([loaded], plan, memory, say, compiled)


def _check(
    spec: ModelSpec, policy: str, token_budget: int | None, tensor: int, memory_fraction: float, devices: int
) -> None:
    """Raises ValueError for what no schedule can make good."""
    if policy not in FLAG_POLICIES:
        raise ValueError(f"policy: {policy!r} takes a plan; choose one of {', '.join(FLAG_POLICIES)}, or give --plan")
    if token_budget is not None and policy != "chunked":
        raise ValueError(f"token_budget: {token_budget} given, but policy {policy} has none; leave it out")
    if not 0.0 < memory_fraction <= 1.0:
        raise ValueError(f"memory_fraction: {memory_fraction} is out of range; give more than 0 and at most 1")
    check_tensor(spec, tensor)
    if tensor > devices:
        raise ValueError(f"tensor: {tensor} exceeds the {devices} devices; lower it, or raise --devices on CPU")


def _budget(policy: str, given: int | None) -> int:
    return (given or 256) if policy == "chunked" else 0


def _with_rows(
    schedule: Schedule,
    given: int | None,
    spec: ModelSpec,
    plan_of: Callable[[Schedule], Plan],
    usable_bytes: int,
    on_cpu: bool,
) -> Schedule:
    """The schedule with as many rows as were asked for, or as many as fit."""

    def sized(rows: int) -> Schedule:
        return dataclasses.replace(
            schedule,
            max_rows=rows,
            encode_batch=min(schedule.encode_batch, rows),
            decode_batch=min(schedule.decode_batch, rows),
            # Whatever B_E is chosen, no call will be larger.
            encode_micro_batch=encode_call_rows(rows, plan_of(schedule).max_prompt_tokens),
        )

    def memory_of(rows: int) -> tuple[DeviceMemory, ...]:
        plan = plan_of(sized(rows))
        return memory_table(spec, plan.schedule, plan.buckets, plan.dtype, plan.cache_dtype)

    if given is not None:
        schedule = dataclasses.replace(schedule, max_rows=given)  # refuses batches beyond it by name
        table = memory_of(given)
        if max(memory.total_bytes for memory in table) > usable_bytes:
            raise ValueError(out_of_memory(table, usable_bytes))
        return schedule
    limit = max(_MOST_ROWS_CPU if on_cpu else _MOST_ROWS, schedule.max_rows)
    return sized(rows_that_fit(memory_of, usable_bytes, limit))


def _chosen(
    schedule: Schedule,
    encode_batch: int | None,
    decode_iterations: int | None,
    decode_batch: int | None,
    stage: Stage,
    plan_of: Callable[[Schedule], Plan],
    say: Say,
) -> Schedule:
    """B_E, N_D and B_D: as given, or chosen from a short measurement."""
    batch, iterations = encode_batch, decode_iterations
    if schedule.policy == "static" and batch is None:
        batch = schedule.max_rows
    if schedule.policy == "static" and iterations is None:
        iterations = _STATIC_ITERATIONS
    if schedule.policy in ("iteration", "chunked"):
        if iterations not in (None, 1):
            raise ValueError(
                f"decode_iterations: {iterations}, but policy {schedule.policy} runs 1 a phase; leave it out"
            )
        batch, iterations = batch or min(_REFILL_BATCH, schedule.max_rows), 1
    if batch is None or iterations is None:
        say("measuring to choose what was not given")
        plan = plan_of(schedule)
        found = measure.measure(stage, plan, lambda name, done, total: None)
        choice = measure.choose(found, schedule.policy, plan.cache_tokens)
        batch = batch or choice.encode_batch
        iterations = iterations or choice.decode_iterations
        say(
            f"chosen for answers of {choice.output_tokens} tokens: encode_batch={batch} decode_iterations={iterations} "
            f"(measured: {found.iteration_s * 1e3:.2f} ms per iteration of {found.rows} rows, "
            f"{found.encode_s[1] * 1e3:.2f} ms to encode one prompt of {found.prompt_tokens} tokens)"
        )
    return dataclasses.replace(
        schedule,
        encode_batch=min(batch, schedule.max_rows),
        decode_iterations=iterations,
        decode_batch=decode_batch or schedule.max_rows,
        micro_batch=schedule.max_rows,
        encode_micro_batch=encode_call_rows(min(batch, schedule.max_rows), plan_of(schedule).max_prompt_tokens),
    )
