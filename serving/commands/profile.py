"""Measures what a model's layers cost on the devices at hand, or composes it from published tables, for `exegpt plan`.

usage: exegpt profile --model=DIR --output=FILE times the engine's own compiled programs over a grid of rows, prompt
lengths and contexts. Samples are kept beside the output, so that a killed run goes on where it was; the same flags
continue, others begin anew. exegpt profile --model=PRESET --from_tables --device_kind=KIND --output=FILE measures
nothing and needs no accelerator.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.flags import shared
from serving.progress import Display
from solver.facts import presets
from solver.facts.model_config import read_model_spec
from solver.facts.profile import Mark, Profile
from solver.facts.profile import Table as Times
from solver.facts.profile_file import write_profile
from solver.facts.stolen import Stolen
from solver.facts.workload import Floats

if TYPE_CHECKING:
    from exegpt_jax.profiler.measure import Measured

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
flags.DEFINE_string("output", None, "profile to write; .json, or .json.gz to pack it", flag_values=FLAGS)
flags.DEFINE_list(
    "tensor", None, "tensor-parallel degrees, such as 1,2,4; 1, or those of the tables, if absent", flag_values=FLAGS
)
flags.DEFINE_enum("dtype", None, shared.DTYPES, "of weights; the platform's best if absent", flag_values=FLAGS)
flags.DEFINE_enum(
    "cache_dtype",
    None,
    shared.DTYPES,
    "of keys and values; float32 on CPU, else --dtype's, if absent",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_rows", None, "most rows of a decode call; 32 on CPU, else 256, if absent", 1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "cache_tokens", None, "positions per row; 2048 or the model's limit if absent", 2, flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_prompt_tokens", None, "longest prompt; half of --cache_tokens if absent", 1, flag_values=FLAGS
)
flags.DEFINE_float("time_budget_s", 600.0, "begins nothing new after this long", 0.0, flag_values=FLAGS)
flags.DEFINE_integer("repeats", 7, "samples of each point, where the time suffices", 1, flag_values=FLAGS)
flags.DEFINE_bool("resume", True, "continue a killed run of the same flags", flag_values=FLAGS)
flags.DEFINE_string("device_kind", None, "name that clusters give the device; its own if absent", flag_values=FLAGS)
flags.DEFINE_bool("from_tables", False, "compose from published tables instead of measuring", flag_values=FLAGS)
flags.DEFINE_string("tables", None, "folder of published tables; the one that comes along if absent", flag_values=FLAGS)
flags.DEFINE_integer(
    "devices", None, "measure on this many virtual CPU devices (correctness only, not speed)", 1, flag_values=FLAGS
)
flags.DEFINE_string(
    "compilation_cache",
    None,
    "keeps compiled programs between runs; a folder under ~/.cache if absent",
    flag_values=FLAGS,
)

_MOST_CACHE_TOKENS = 2048
_MOST_ROWS_CPU, _MOST_ROWS = 32, 256
_MICROSECONDS = 1e6
# Quiet machines repeat themselves within a few percent.
_BUSY_SPREAD = 0.1
# Of the table where it goes to a file.
_WIDTH = 120


def main(argv: list[str]) -> int:
    """Writes the profile and prints what it holds."""
    shared.refuse_arguments(argv)
    output = _output()
    degrees = _degrees()
    if FLAGS.from_tables:
        profile = _composed(degrees)
        write_profile(profile, output)
    else:
        profile = _measured(output, degrees or (1,))
    _print(profile, output)
    return 0


def _output() -> Path:
    given: str | None = FLAGS.output
    if not given:
        raise ValueError("output: not given; name the profile to write with --output=FILE")
    path = Path(given)
    if not path.parent.is_dir():
        raise ValueError(f"output: {path.parent} is no directory; make it first")
    return path


def _degrees() -> tuple[int, ...]:
    """Those asked for, rising; empty where none were."""
    given: list[str] | None = FLAGS.tensor
    if given is None:
        return ()
    if not given or not all(part.isdigit() and int(part) > 0 for part in given):
        raise ValueError(f"tensor: {','.join(given)!r} is no list of degrees; give such as --tensor=1,2")
    return tuple(sorted(set(map(int, given))))


def _composed(degrees: tuple[int, ...]) -> Profile:
    """From the published tables; refuses device kinds and degrees that they do not reach."""
    # Only here, so that measuring loads no importer.
    from solver.importers.compose import compose
    from solver.importers.tables import TABLES

    given: str | None = FLAGS.model
    if not given:
        raise ValueError("model: not given; name a model directory, a config.json or a preset with --model=NAME")
    kind: str | None = FLAGS.device_kind
    if not kind:
        raise ValueError("device_kind: not given; name the device, such as --device_kind=h100-80g")
    path = presets.find("models", given)
    tables: str | None = FLAGS.tables
    folder = TABLES if tables is None else Path(tables)
    profile = compose(read_model_spec(path), kind, FLAGS.dtype or "bfloat16", path.stem, folder)
    absent = sorted(set(degrees) - set(profile.tensor_degrees))
    if absent:
        known = ", ".join(map(str, profile.tensor_degrees))
        raise ValueError(f"tensor: {absent[0]} is not in the tables of this model; choose among {known}")
    if not degrees:
        return profile
    return dataclasses.replace(
        profile,
        layers=tuple(times for times in profile.layers if times.tensor in degrees),
        ends=tuple(times for times in profile.ends if times.tensor in degrees),
    )


def _measured(output: Path, degrees: tuple[int, ...]) -> Profile:
    directory = shared.model_directory(FLAGS)
    shared.prepare_devices(FLAGS)
    # Only here does jax come in.
    import jax

    from exegpt_jax.profiler.grid import Limits
    from exegpt_jax.profiler.measure import Wishes, profile_model
    from exegpt_jax.runner.warm import keep_programs

    cache: str | None = FLAGS.compilation_cache
    keep_programs(None if cache is None else Path(cache))
    on_cpu = jax.local_devices()[0].platform == "cpu"
    dtype = FLAGS.dtype or ("float32" if on_cpu else "bfloat16")
    length = FLAGS.cache_tokens or min(read_model_spec(directory).max_positions, _MOST_CACHE_TOKENS)
    wishes = Wishes(
        limits=Limits(
            max_rows=FLAGS.max_rows or (_MOST_ROWS_CPU if on_cpu else _MOST_ROWS),
            cache_tokens=length,
            max_prompt_tokens=FLAGS.max_prompt_tokens or max(1, length // 2),
        ),
        tensor=degrees,
        dtype=dtype,
        cache_dtype=FLAGS.cache_dtype or ("float32" if on_cpu else dtype),
        device_kind=FLAGS.device_kind,
        time_budget_s=FLAGS.time_budget_s,
        repeats=FLAGS.repeats,
    )
    partial = output.with_name(output.name + ".samples.jsonl")
    with Display() as display:
        bar = display.bar("profile", 1.0)
        found = profile_model(
            directory, wishes, partial, lambda done, total, note: bar(done / total, note), resume=FLAGS.resume
        )
        for line in _summary(found):
            display.say(line)
    write_profile(found.profile, output)
    partial.unlink()
    return found.profile


def _summary(found: Measured) -> list[str]:
    resumed = f" ({found.resumed} of them from an earlier run)" if found.resumed else ""
    lines = [
        f"measured {found.points_measured} of {found.points} points, {found.samples} samples{resumed}, "
        f"in {found.seconds:.1f} s"
    ]
    if found.points_measured < found.points:
        lines.append("the rest is interpolated; raise --time_budget_s to measure it")
    if found.profile.spread > _BUSY_SPREAD:
        lines.append(f"repeats spread by {found.profile.spread:.0%}: the machine is busy; measure when it is quiet")
    if found.stolen > Stolen.TOLERANCE:
        lines.append(f"others took {found.stolen:.0%} of this machine meanwhile, so its speed is not its own")
    return lines


def _print(profile: Profile, output: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(
        f"{profile.model} on {profile.device_kind}: {profile.dtype}, cache {profile.cache_dtype}\n"
        f"dispatch {_us(profile.dispatch_s)} us, decode call {_us(profile.phase_s)} us, spread {profile.spread:.1%}",
        markup=False,
        highlight=False,
    )
    table = Table()
    for name in ("", "tensor", "rows", "tokens", "us"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    table.add_column("numbers")
    for layer in profile.layers:
        window = "" if layer.kind.window_tokens is None else f", window {layer.kind.window_tokens}"
        for name, times in (("encode", layer.encode), ("decode", layer.decode)):
            table.add_row(f"layer {name}{window}", str(layer.tensor), *_row(times))
    for end in profile.ends:
        table.add_row("embedding", str(end.tensor), *_row(end.embed))
        table.add_row("head", str(end.tensor), *_row(end.head))
    console.print(table)
    console.print(f"wrote {output}", markup=False, highlight=False)


def _row(times: Times) -> list[str]:
    """Sizes, the least and the most time, and how many numbers have each mark."""
    second = "" if times.second[-1] == 0 else _reach(times.second)
    least, most = float(times.seconds.min()), float(times.seconds.max())
    counts = {mark.name.lower(): int((times.marks == mark).sum()) for mark in Mark}
    marks = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return [_reach(times.first), second, f"{_us(least)} - {_us(most)}", marks]


def _reach(sizes: Floats) -> str:
    return f"{sizes[0]:g}" if len(sizes) == 1 else f"{sizes[0]:g} - {sizes[-1]:g}"


def _us(seconds: float) -> str:
    micros = seconds * _MICROSECONDS
    return f"{micros:.3g}" if micros < 100 else f"{micros:,.0f}"
