"""`profile_model`: from a model directory to a Profile, by timing the engine's own compiled programs.

    limits -> points (grid) -> probes (probe) -> samples in rounds (rounds), kept on disk (journal)
           -> layers, ends and marks (tables) -> Profile

Whole-model calls are what is timed; how they divide into layers and ends is said in `exegpt_jax.profiler.tables`.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jaxlib

from exegpt_jax.profiler.grid import Limits, Point, axes_of, points_of, short_specs
from exegpt_jax.profiler.journal import Journal, fingerprint
from exegpt_jax.profiler.probe import Probe, Sample, shorten
from exegpt_jax.profiler.rounds import Effort, Progress, take_samples
from exegpt_jax.profiler.runner_gap import runner_gap_s
from exegpt_jax.profiler.stage_dispatch import stage_dispatch_s
from exegpt_jax.profiler.tables import Samples, overheads, spread_of, tables_of
from exegpt_jax.runner.warm import device_bytes
from exegpt_jax.sharding.stage import Stage
from exegpt_jax.weights.digest import checkpoint_digest
from exegpt_jax.weights.loading import load_stage
from solver.facts.hardware import cpu_model
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import EndTimes, LayerTimes, Profile
from solver.facts.profile_file import shape_digest
from solver.facts.stolen import Stolen
from solver.facts.tensor_degree import check_tensor
from solver.plan.buckets import Buckets
from solver.plan.memory import memory_table, out_of_memory
from solver.plan.schedule import Schedule, StageSpec

DEFAULT_REPEATS = 7
# Of a changed way of measuring: samples of another version are not continued.
_METHOD = 1
_MEMORY_FRACTION = 0.9
_GAP_KEY = "runner gap, tensor {}"
_STAGE_KEY = "stage dispatch, tensor {}"


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is measured, and how long.

    Attributes:
      limits: of the grid.
      tensor: degrees, rising.
      dtype, cache_dtype: of weights; of keys and values.
      device_kind: the name that clusters give the device; None: `device_kind_of` it.
      time_budget_s: after which no further point or round begins; the corners of the grid are measured in any case.
      repeats: samples of each point.
    """

    limits: Limits
    tensor: tuple[int, ...] = (1,)
    dtype: str = "float32"
    cache_dtype: str = "float32"
    device_kind: str | None = None
    time_budget_s: float = 600.0
    repeats: int = DEFAULT_REPEATS


@dataclasses.dataclass(frozen=True)
class Measured:
    """A profile and what it took.

    Attributes:
      profile: to be written.
      points, points_measured: of the grid, short models included.
      samples, resumed: in all; of those, from a run before.
      seconds: this run took.
      stolen: share of the machine that others took meanwhile, as a virtual machine counts it.
    """

    profile: Profile
    points: int
    points_measured: int
    samples: int
    resumed: int
    seconds: float
    stolen: float


def profile_model(
    directory: Path, wishes: Wishes, partial: Path, progress: Progress | None = None, *, resume: bool = True
) -> Measured:
    """Measures a model directory on the devices of this process.

    Args:
      directory: Hugging Face model directory or Orbax checkpoint.
      wishes: what and how long.
      partial: file that keeps samples until all are taken; a later call with the same wishes continues it. It is left
        where it is: whoever has written the profile removes it.
      progress: hears of every sample.
      resume: False begins anew.

    Raises:
      ValueError: one line that names the value at fault and the remedy.
    """
    began_s, stolen = time.monotonic(), Stolen()
    spec = read_model_spec(directory)
    devices = jax.local_devices()
    _check(wishes, spec, len(devices))
    kind = wishes.device_kind or device_kind_of(devices[0])
    facts = _facts(directory, wishes, devices[0])
    journal = Journal(partial, fingerprint(facts), resume=resume)
    measured = 0
    all_points: list[Point] = []
    try:
        for index, tensor in enumerate(wishes.tensor):
            points = points_of(spec, tensor, wishes.limits)
            left_s = began_s + wishes.time_budget_s - time.monotonic()
            effort = Effort(time.monotonic() + left_s / (len(wishes.tensor) - index), wishes.repeats)
            measured += _measure(directory, spec, tensor, wishes, points, journal, effort, progress or _silent)
            all_points += points
    finally:
        journal.close()
    samples = journal.samples
    taken, total = sum(len(repeated) for repeated in samples.values()), len(all_points)
    source = _source(facts, measured, total, taken)
    profile = _profile(directory.resolve().name, spec, wishes, kind, source, all_points, samples)
    return Measured(profile, total, measured, taken, journal.resumed, time.monotonic() - began_s, stolen.share())


def _profile(
    model: str,
    spec: ModelSpec,
    wishes: Wishes,
    device_kind: str,
    source: str,
    points: Sequence[Point],
    samples: Samples,
) -> Profile:
    """Tables of every degree from the samples of all points."""
    axes = axes_of(wishes.limits)
    costs = overheads(points, samples)
    gaps = [sample.seconds for tensor in wishes.tensor for sample in samples[_GAP_KEY.format(tensor)]]
    stage_s = [sample.seconds for tensor in wishes.tensor for sample in samples[_STAGE_KEY.format(tensor)]]
    layers: list[LayerTimes] = []
    ends: list[EndTimes] = []
    for tensor in wishes.tensor:
        own = [point for point in points if point.tensor == tensor]
        found, end = tables_of(spec, axes, own, samples, costs)
        layers += found
        ends.append(end)
    return Profile(
        model=model,
        shape=shape_digest(spec),
        dtype=wishes.dtype,
        cache_dtype=wishes.cache_dtype,
        device_kind=device_kind,
        source=source,
        layers=tuple(layers),
        ends=tuple(ends),
        dispatch_s=costs.dispatch_s,
        phase_s=costs.phase_s + max(gaps),
        stage_dispatch_s=max(stage_s),
        padded=True,
        spread=spread_of({point.key: samples[point.key] for point in points}),
    )


def device_kind_of(device: jax.Device) -> str:
    """The name that cluster files give this kind of device, as far as the device says: "cpu", "h100-80g", "tpu-v5e"."""
    if device.platform == "cpu":
        return "cpu"
    name = str(device.device_kind).lower()
    found = re.search(r"\b(a40|a100|h100|h200)\b", name)
    if found is None:
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    memory = re.search(r"(\d+) ?gb", name)
    size = int(memory.group(1)) if memory else {"a40": 48, "h200": 141}.get(found.group(1), 80)
    return f"{found.group(1)}-{size}g"


def _silent(done: int, total: int, note: str) -> None:
    pass


def _check(wishes: Wishes, spec: ModelSpec, devices: int) -> None:
    limits = wishes.limits
    if limits.cache_tokens > spec.max_positions:
        raise ValueError(
            f"cache_tokens: {limits.cache_tokens} exceeds the model's {spec.max_positions} positions; lower it"
        )
    if not wishes.tensor or len(set(wishes.tensor)) != len(wishes.tensor):
        raise ValueError(f"tensor: {','.join(map(str, wishes.tensor))!r} is no list of different degrees")
    for tensor in wishes.tensor:
        check_tensor(spec, tensor)
        if tensor > devices:
            raise ValueError(f"tensor: {tensor} exceeds the {devices} devices; lower it, or raise --devices on CPU")
        _check_memory(wishes, spec, tensor)
    if not 0 < wishes.time_budget_s < float("inf"):
        raise ValueError(f"time_budget_s: {wishes.time_budget_s} is no budget; give a positive number of seconds")
    if wishes.repeats < 1:
        raise ValueError(f"repeats: {wishes.repeats} is too small; give at least 1")


def _check_memory(wishes: Wishes, spec: ModelSpec, tensor: int) -> None:
    """Refuses a grid whose largest cache does not fit beside the weights."""
    limits, axes = wishes.limits, axes_of(wishes.limits)
    layout = StageSpec("both", (0, spec.num_layers), tuple(range(tensor)), tensor)
    schedule = Schedule("rra", 1, 1, 1, limits.max_rows, (layout,), limits.max_rows, 1)
    buckets = Buckets((1,), axes.encode_tokens[-1:], (limits.max_rows,), axes.contexts[-1:])
    table = memory_table(spec, schedule, buckets, wishes.dtype, wishes.cache_dtype)
    usable_bytes = int(device_bytes(jax.local_devices()[0], tensor) * _MEMORY_FRACTION)
    if max(memory.total_bytes for memory in table) > usable_bytes:
        remedy = "lower --max_rows or --cache_tokens, or profile a higher --tensor"
        raise ValueError(out_of_memory(table, usable_bytes, remedy))


def _measure(
    directory: Path,
    spec: ModelSpec,
    tensor: int,
    wishes: Wishes,
    points: Sequence[Point],
    journal: Journal,
    effort: Effort,
    progress: Progress,
) -> int:
    """Samples of one tensor degree; returns how many points have some."""
    gap_key, stage_key = _GAP_KEY.format(tensor), _STAGE_KEY.format(tensor)
    complete = all(len(journal.samples[point.key]) >= wishes.repeats for point in points)
    if complete and journal.samples[gap_key] and journal.samples[stage_key]:
        return len(points)
    devices = jax.local_devices()[:tensor]
    layout = StageSpec("both", (0, spec.num_layers), tuple(device.id for device in devices), tensor)
    stage = load_stage(directory, spec, layout, wishes.dtype, devices)
    shorts = [shorten(stage, short) for short in short_specs(spec)]

    def open_probe(point: Point) -> Probe:
        cut: Stage = stage if point.cut == "whole" else shorts[point.kind]
        return Probe(point, cut, wishes.cache_dtype)

    for key, measured_s in ((gap_key, runner_gap_s), (stage_key, stage_dispatch_s)):
        if not journal.samples[key]:
            journal.add(key, Sample(measured_s(stage, wishes.limits, wishes.cache_dtype), 0.0, 0, 0.0))
    return take_samples(points, open_probe, journal, effort, progress)


def _facts(directory: Path, wishes: Wishes, device: jax.Device) -> dict[str, object]:
    """Everything that a time depends on; the budget is not among it, since a longer one continues a shorter."""
    return {
        "method": _METHOD,
        "model": checkpoint_digest(directory),
        "tensor": list(wishes.tensor),
        "dtype": wishes.dtype,
        "cache_dtype": wishes.cache_dtype,
        "limits": dataclasses.asdict(wishes.limits),
        "device": str(device.device_kind),
        "devices": jax.local_device_count(),
        "cpu": cpu_model(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def _source(facts: dict[str, object], measured: int, total: int, samples: int) -> str:
    return (
        f"exegpt profile on {facts['devices']} x {facts['device']} (processor {facts['cpu']}), jax {facts['jax']}, "
        f"jaxlib {facts['jaxlib']}, python {platform.python_version()}; checkpoint sha256 {facts['model']}; "
        f"{measured} of {total} points, {samples} samples; whole-model programs, layers and ends split by a short model"
    )
