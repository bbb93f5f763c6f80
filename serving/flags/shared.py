"""Flags that several commands share: which model, which schedule, which devices.

A command makes its own `flags.FlagValues()`, lets `define_model` and `define_schedule` fill it, and hands the parsed
values on with `schedule_arguments`. Nothing here imports jax; `prepare_devices` must run before anything does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypedDict, cast

from absl import flags

from solver.plan.schedule import FLAG_POLICIES

DTYPES = ("float32", "bfloat16")
# What a plan says; beside --plan none of these may be given.
SCHEDULE_FLAGS = (
    *("policy", "encode_batch", "decode_iterations", "decode_batch", "max_rows", "token_budget", "cache_tokens"),
    *("max_prompt_tokens", "tensor", "dtype"),
)
ENGINES = ("jax", "fake")


class ScheduleArguments(TypedDict):
    """What `exegpt_jax.runner.build.build` and `LLM` take besides the directory; None leaves the choice to it."""

    policy: str
    encode_batch: int | None
    decode_iterations: int | None
    decode_batch: int | None
    max_rows: int | None
    token_budget: int | None
    tensor: int
    dtype: str | None
    cache_tokens: int | None
    max_prompt_tokens: int | None
    memory_fraction: float
    compilation_cache: Path | None


def define_model(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "model", None, "model directory (Hugging Face layout or an Orbax checkpoint)", flag_values=values
    )


def define_schedule(values: flags.FlagValues) -> None:
    """Control variables of the schedule, memory and devices."""
    flags.DEFINE_enum("policy", "rra", FLAG_POLICIES, "how encode and decode phases alternate", flag_values=values)
    for name, text in (
        ("encode_batch", "B_E: prompts per encode phase"),
        ("decode_iterations", "N_D: decode iterations per phase"),
        ("decode_batch", "B_D: expected peak of decoding rows; the encode batch is corrected at run time to hold it"),
        ("max_rows", "rows allocated in the key/value cache"),
        ("token_budget", "chunked only: decode rows plus prompt tokens of one iteration"),
        ("cache_tokens", "positions allocated per row: longest prompt plus output"),
        ("max_prompt_tokens", "longest prompt"),
    ):
        flags.DEFINE_integer(name, None, f"{text}; chosen and printed if absent", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("tensor", 1, "tensor-parallel degree: devices that share every layer", 1, flag_values=values)
    flags.DEFINE_enum(
        "dtype", None, DTYPES, "of weights and activations; the platform's best if absent", flag_values=values
    )
    flags.DEFINE_float(
        "memory_fraction",
        0.9,
        "share of a device's memory that weights and cache may take",
        0.01,
        1.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "devices", None, "run on this many virtual CPU devices (correctness only, not speed)", 1, flag_values=values
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "keeps compiled programs between runs; JAX's own setting, else a folder under ~/.cache, if absent",
        flag_values=values,
    )


def define_plan(values: flags.FlagValues) -> None:
    """A plan in place of the schedule's flags."""
    flags.DEFINE_string(
        "plan",
        None,
        "run this plan of exegpt plan (- is standard input) as it stands, in place of the schedule's flags",
        flag_values=values,
    )
    flags.DEFINE_list(
        "profile",
        None,
        "with --plan: the profiles that it was made from, to predict each phase; those that ship are found",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cluster", None, "with --plan: the cluster that it was made for, where that is no preset", flag_values=values
    )


def refuse_beside_plan(values: flags.FlagValues) -> None:
    """Raises ValueError that names the first flag that contradicts --plan, or that needs one."""
    if not values.plan:
        for name in ("profile", "cluster"):
            if values[name].value:
                raise ValueError(f"{name}: given without --plan, which it was for; leave it out or name the plan")
        return
    for name in SCHEDULE_FLAGS:
        if values[name].present:
            raise ValueError(f"{name}: {values[name].value} given beside --plan, which says it itself; leave one out")


def define_engine(values: flags.FlagValues) -> None:
    """Which engine runs the schedule, and where its timeline goes."""
    flags.DEFINE_enum(
        "engine",
        "jax",
        ENGINES,
        "fake: no weights, tokens by an arithmetic rule, for trying the rest",
        flag_values=values,
    )
    flags.DEFINE_float(
        "fake_step_s", 0.0, "fake engine only: seconds per decode iteration", lower_bound=0.0, flag_values=values
    )
    flags.DEFINE_string(
        "timeline", None, "write what happened when as a Chrome trace (ui.perfetto.dev opens it)", flag_values=values
    )


def refuse_arguments(argv: list[str]) -> None:
    """Raises ValueError if something on the command line is no flag; `argv[0]` is the program."""
    if len(argv) > 1:
        raise ValueError(f"arguments: {argv[1]!r} is no flag; see {argv[0]} --help")


def schedule_arguments(values: flags.FlagValues) -> ScheduleArguments:
    given = {name: values[name].value for name in ScheduleArguments.__annotations__}
    cache = given["compilation_cache"]
    return cast(ScheduleArguments, {**given, "compilation_cache": None if cache is None else Path(cache)})


def given_flags(values: flags.FlagValues) -> list[str]:
    """The flags that say something else than what is usual, as one would type them."""
    named = [values[name] for name in values if values[name].value != values[name].default]
    return [line for flag in named for line in str(flag.serialize()).splitlines()]


def model_directory(values: flags.FlagValues) -> Path:
    """The model directory. Raises ValueError if absent or no directory."""
    given: str | None = values.model
    if not given:
        raise ValueError("model: not given; name a model directory with --model=DIR")
    directory = Path(given)
    if not directory.is_dir():
        raise ValueError(f"model: {given} is no directory; name one that holds config.json")
    return directory


def prepare_devices(values: flags.FlagValues) -> None:
    """Settings that jax reads once, when it starts. Raises ValueError if it has started with fewer --devices."""
    devices: int | None = values.devices
    if devices is not None and "jax" in sys.modules:
        running: int = sys.modules["jax"].device_count()
        if devices > running:
            raise ValueError(f"devices: {devices} asked for, but jax already runs with {running}; use a new process")
    elif devices is not None:
        kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
        os.environ["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
        os.environ["JAX_PLATFORMS"] = "cpu"
        # XLA sizes its thread pool by this; fewer threads than devices can starve a collective for ever.
        os.environ.setdefault("NPROC", str(max(16, 2 * devices)))
