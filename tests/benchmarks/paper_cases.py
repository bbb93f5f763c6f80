"""The scenarios of ExeGPT's evaluation, the figures it publishes, and one case run under this repository's simulator.

    Case -> FasterTransformer's ladder of batches -> bounds at its percentiles -> every policy's search at each bound

FasterTransformer's part is static batching on its own placement (tensor parallelism as wide as a host allows, pipeline
across hosts), its devices free of this repository's barrier. Latency is that of the answer of 99th percentile length.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.presets import find
from solver.facts.profile_file import find_profile
from solver.facts.workload import Floats, Ints
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds
from solver.plan.schedule import Policy
from solver.search.baseline_search import search_baseline
from solver.search.outcome import Best, Outcome, Report, Tally
from solver.search.proof.limits import Limits
from solver.search.request import PlanRequest
from solver.search.rra_search import search_rra
from solver.search.setting import Setting, make_setting
from solver.search.uniform import Placed, place
from solver.search.waa_search import search_waa
from solver.simulate.points import Points
from solver.simulate.static import evaluate_static

BOUNDS = ("10%", "30%", "70%", "inf")
PERCENTILES = (10, 30, 70)
BATCH_STEP = 4
BASELINES: tuple[Policy, ...] = ("dsi", "iteration", "chunked")
# Cells (iterations x batches) of the static closed form that are worked out at once.
_CELLS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Case:
    """One model on one cluster under one task."""

    model: str
    cluster: str
    devices: int
    task: str

    @property
    def name(self) -> str:
        return f"{self.model} on {self.devices} ({self.cluster}), {self.task}"


LARGE = ("gpt3-101b", "gpt3-175b", "gpt3-341b")
SYSTEMS = (
    ("opt-13b", "paper-a40-48", 4),
    ("gpt3-39b", "paper-a40-48", 16),
    ("gpt3-175b", "paper-a40-48", 32),
    ("gpt3-101b", "paper-a100-16", 16),
    ("gpt3-175b", "paper-a100-16", 16),
    ("gpt3-341b", "paper-a40-48", 48),
)
TASKS = ("paper-s", "paper-t", "paper-g", "paper-c1", "paper-c2")

# Table 6: OPT-13B, task S, 4 A40. Bound, policy, B_E, N_D, tensor degree, latency, queries per second.
TABLE6: tuple[tuple[float, str, int, int | None, int, float, float], ...] = (
    (3.1, "waa", 4, None, 2, 3.01, 22.41),
    (5.9, "waa", 10, None, 2, 4.11, 23.76),
    (11.5, "rra", 52, 13, 4, 10.23, 25.23),
    (math.inf, "rra", 49, 7, 4, 16.87, 26.15),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How every search of a run is asked.

    Attributes:
      time_limit_s: of each search at each bound.
      gap: searches end within this share of their bound.
      baselines: swept beside RRA and WAA.
      splits: policies that part the devices: waa, disaggregated.
    """

    time_limit_s: float
    gap: float
    baselines: Sequence[Policy] = BASELINES
    splits: Sequence[Policy] = ("waa",)


def setting_of(case: Case, gap: float) -> Setting:
    """Everything but the latency bound, which each search adds.

    Raises:
      ValueError: the model cannot hold the task's rows.
    """
    spec = read_model_spec(find("models", case.model))
    cluster = load_cluster(case.cluster, case.devices)
    profiles = tuple(find_profile(spec, kind, "bfloat16") for kind in dict.fromkeys(g.kind for g in cluster.groups))
    return make_setting(
        PlanRequest(
            spec, case.model, cluster, profiles, load_workload(case.task), Bounds(), gap=gap, margin=0.0,
            cache_layout="paged", compaction="iteration", delivery="iteration",
        )
    )  # fmt: skip


def ladder(setting: Setting) -> tuple[Placed, Floats]:
    """FasterTransformer's placement, and (batch, micro-batches, latency in s, requests per s) of every batch that fits.

    Returns:
      float64 [settings, 4], by batch, then by micro-batches.

    Raises:
      ValueError: not even the smallest batch fits.
    """
    pool = setting.pools[0]
    placed = place(setting, pool, max(setting.degrees(pool)), "both")
    assert placed is not None, "the widest degree of a pool fits it"
    capacity = np.array(placed.usable_bytes(setting))[:, None]
    size = max(1, _CELLS // (setting.lengths.most_decode + 2))
    found = []
    for parts in placed.micro_batches():
        batches = np.arange(BATCH_STEP, setting.most_rows * parts + 1, BATCH_STEP)
        for first in range(0, len(batches), size):
            some = batches[first : first + size]
            plain = static_points(setting, placed, some, parts, counted=False)
            some = some[(plain.memory_bytes <= capacity).all(axis=0)]
            if not some.size:
                break  # bytes grow with the batch
            points = static_points(setting, placed, some, parts, counted=True)
            fits = (points.memory_bytes <= capacity).all(axis=0)
            columns = (some, np.full(len(some), parts), points.latency_s, points.throughput_rps)
            found.append(np.stack(columns, axis=1)[fits])
    rows = np.concatenate(found) if found else np.zeros((0, 4))
    if not len(rows):
        raise ValueError(f"no batch of {BATCH_STEP} fits beside the weights")
    return placed, rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def static_points(setting: Setting, placed: Placed, batches: Ints, parts: int, counted: bool) -> Points:
    """Static batching without a barrier; `counted`: every byte of this repository's engine, else weights and cache."""
    return evaluate_static(
        placed.pipeline, setting.lengths, setting.conditions, batches, 1, parts, parts,
        memory=setting.memory if counted else None, seamless=True, with_tpot=False,
    )  # fmt: skip


def bounds_of(rows: Floats) -> dict[str, float]:
    """Latency bounds: percentiles over batches, each batch cut as gives it the highest throughput."""
    best: dict[int, tuple[float, float]] = {}
    for batch, _, latency_s, rps in rows:
        best[int(batch)] = max(best.get(int(batch), (0.0, 0.0)), (float(rps), float(latency_s)))
    latencies = [latency_s for _, latency_s in best.values()]
    return {**{f"{p}%": float(np.percentile(latencies, p)) for p in PERCENTILES}, "inf": math.inf}


def static_at(rows: Floats, bound_s: float) -> dict[str, object] | None:
    """FasterTransformer's best batch under a bound."""
    kept = rows[rows[:, 2] <= bound_s]
    if not len(kept):
        return None
    batch, parts, latency_s, rps = kept[kept[:, 3].argmax()]
    return {"rps": float(rps), "latency_s": float(latency_s), "batch": int(batch), "micro_batches": int(parts)}


def run_case(case: Case, options: Options, bounds: Mapping[str, float] | None = None) -> Iterator[dict[str, object]]:
    """One row per bound; those of FasterTransformer's ladder unless others are given."""
    setting = setting_of(case, options.gap)
    placed, rows = ladder(setting)
    own = bounds_of(rows)
    for name, bound_s in (bounds or own).items():
        limited = dataclasses.replace(setting, limits=Limits(latency_s=bound_s))
        row: dict[str, object] = {
            **dataclasses.asdict(case),
            "bound": name,
            "bound_s": bound_s if math.isfinite(bound_s) else None,
            "ft_placement": f"{len(placed.stages)} x TP{placed.most_tensor}",
            "ft_batches": [int(rows[0, 0]), int(rows[-1, 0])],
            "ft_latency_s": [float(rows[:, 2].min()), float(rows[:, 2].max())],
            "ft": static_at(rows, bound_s),
        }
        for policy, search in searches(options).items():
            row[policy] = timed(limited, search, options.time_limit_s)
        yield row


def searches(options: Options) -> dict[str, Callable[[Setting, Tally], Outcome]]:
    """By policy."""
    found: dict[str, Callable[[Setting, Tally], Outcome]] = {"rra": functools.partial(search_rra, report=_silent)}
    for policies, search in ((options.splits, search_waa), (options.baselines, search_baseline)):
        for policy in policies:
            found[policy] = functools.partial(_asked, search, policy)
    return found


def _asked(
    search: Callable[[Setting, Policy, Tally, Report], Outcome], policy: Policy, setting: Setting, tally: Tally
) -> Outcome:
    return search(setting, policy, tally, _silent)


def _silent(nodes: int, incumbent_rps: float | None, bound_rps: float | None) -> None:
    pass


def timed(setting: Setting, search: Callable[[Setting, Tally], Outcome], time_limit_s: float) -> dict[str, object]:
    """What a search found, its bound, and what it took."""
    began_s, cpu_s = time.monotonic(), time.process_time()
    tally = Tally(began_s, began_s + time_limit_s)
    outcome = search(setting, tally)
    bound_rps = float(outcome.bound_rps)
    return {
        **described(outcome.best),
        "bound_rps": bound_rps if math.isfinite(bound_rps) else None,
        "ended_by_time": not tally.complete,
        "seconds": time.monotonic() - began_s,
        "cpu_seconds": time.process_time() - cpu_s,
        "reason": outcome.reason,
    }


def described(best: Best | None) -> dict[str, object]:
    """A candidate in words and numbers; rps 0 where there is none."""
    if best is None:
        return {"rps": 0.0}
    points = best.points
    split = getattr(best.placed, "split", None)
    stages = " ".join(f"{s.role[0] if split else ''}{s.tensor}" for s in best.placed.stages)
    return {
        "rps": best.rps,
        "latency_s": float(points.latency_s[0]),
        "batch": int(points.encode_batch[0]),
        "iterations": int(points.decode_iterations[0]),
        "copies": best.placed.copies,
        "stages": stages,
        "micro_batches": [best.encode_micro_batches, best.decode_micro_batches],
        "token_budget": best.token_budget,
    }
