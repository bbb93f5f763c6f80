"""Tunes the demo's baselines: many settings of each under the demo's own load and bound; the best go to the demo.

    python -m tests.benchmarks.demo_sweep --output=configs/demo/baselines.json

Profiles the embedded model as the demo does and sets the demo's bound from it. Every setting then serves some requests
over gRPC; the best of each baseline that keep the bound are repeated, in turns, and the one with the highest median
throughput is chosen. Where none keeps it, the one with the least latency is.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import pathlib
import random
import statistics
import sys
import tempfile

from exegpt_jax.testing import numbers_task as task
from serving.cores import split_cores
from serving.demo import lengths
from serving.demo.baselines import BASELINES, Setting, baseline_plan
from serving.demo.measuring import Wanted, correct, make_profile
from serving.demo.planning import CLUSTER, Folder, make_plans
from serving.demo.process import Worker
from serving.demo.stand import Stand
from serving.load import summarise
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.profile_file import read_profile
from tests.benchmarks.provenance import provenance

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "configs" / "demo" / "numbers"
ROWS = (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
STATIC_ITERATIONS = (7, 14)
ENCODE_ROWS = (0.0625, 0.25)
TOKENS_PER_ROW = (1.5, 2.0)
_REPEATED, _REPEATS = 3, 3


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a setting reached.

    Attributes:
      requests_per_s: over gRPC.
      latency_p99_s: from the start of the encode phase, as the server measured it.
    """

    setting: Setting
    requests_per_s: float
    latency_p99_s: float


def candidates() -> list[Setting]:
    static = [Setting("static", r, r, n) for r, n in itertools.product(ROWS, STATIC_ITERATIONS)]
    iteration = [Setting("iteration", r, min(e, r), 1) for r, e in itertools.product(ROWS, ENCODE_ROWS)]
    chunked = [Setting("chunked", r, min(ENCODE_ROWS[0], r), 1, t) for r, t in itertools.product(ROWS, TOKENS_PER_ROW)]
    return [*static, *iteration, *chunked]


class Sweep:
    """The demo's stand under many plans."""

    def __init__(self, stand: Stand, folder: pathlib.Path, max_rows: int) -> None:
        self._stand, self._folder, self._max_rows = stand, folder, max_rows
        self._spec, self._asked = read_model_spec(MODEL), lengths.workload()

    def bound_s(self, profile_s: float) -> float:
        """The demo's own, from a profile that is corrected by a plan under load."""
        files, cores = Folder(self._folder), split_cores()
        wanted = Wanted(files.profile, None, self._max_rows, profile_s, anew=True)
        print(make_profile(MODEL, wanted, cores, print), flush=True)
        make_plans(MODEL, files, self._max_rows, None, ())
        print(correct(MODEL, wanted, cores, self._stand.try_out(files.plan("rra"), files.profile)), flush=True)
        cluster = load_cluster(CLUSTER)
        return lengths.bound_s(read_profile(files.profile), self._spec, cluster, self._asked, self._max_rows)

    def measure(self, setting: Setting, requests: int, seed: int) -> Trial:
        plan = baseline_plan(setting, self._spec, self._asked, self._max_rows)
        path = self._folder / f"{plan.digest[:16]}.json"
        path.write_text(plan.to_json())
        rng = random.Random(seed)
        numbers = [task.draw(rng, lengths.MIN_DIGITS, task.MAX_DIGITS, unseen=False) for _ in range(requests)]
        self._stand.begin(path, None)
        results = self._stand.send(numbers)
        failed = next((result.error for result in results if result.error is not None), None)
        if failed is not None:
            raise ValueError(f"{setting}: a request failed: {failed}")
        trial = Trial(setting, summarise(results).requests_per_s, self._stand.end().latency_s)
        print(f"{setting}: {trial.requests_per_s:.0f} requests/s, p99 {trial.latency_p99_s * 1e3:.0f} ms", flush=True)
        return trial


def best(trials: list[Trial], bound_s: float, count: int) -> list[Trial]:
    """The fastest of those that keep the bound; the nearest where none does."""
    kept = sorted((t for t in trials if t.latency_p99_s <= bound_s), key=lambda t: -t.requests_per_s)
    return kept[:count] or sorted(trials, key=lambda t: t.latency_p99_s)[:count]


def median_of(trials: list[Trial]) -> Trial:
    return Trial(
        trials[0].setting,
        statistics.median(t.requests_per_s for t in trials),
        statistics.median(t.latency_p99_s for t in trials),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max_rows", type=int, default=128)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--profile_s", type=float, default=60.0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Worker(lambda line: None) as worker, asyncio.Runner() as loop:
        stand = Stand(worker, loop, MODEL, 2 * flags.max_rows)
        sweep = Sweep(stand, pathlib.Path(folder), flags.max_rows)
        bound_s = sweep.bound_s(flags.profile_s)
        print(f"bound: {bound_s * 1e3:.1f} ms", flush=True)
        trials = [sweep.measure(setting, flags.requests, seed=0) for setting in candidates()]
        chosen = []
        for policy in BASELINES:
            promising = best([trial for trial in trials if trial.setting.policy == policy], bound_s, _REPEATED)
            turns = [
                [sweep.measure(each.setting, 2 * flags.requests, seed=1 + turn) for each in promising]
                for turn in range(_REPEATS)
            ]
            chosen += best([median_of(list(each)) for each in zip(*turns, strict=True)], bound_s, 1)
    results = {
        **provenance(" ".join(["python", "-m", "tests.benchmarks.demo_sweep", *sys.argv[1:]]), 0),
        "max_rows": flags.max_rows,
        "bound_s": bound_s,
        "bound_percentile": lengths.BOUND_PERCENTILE,
        "chosen": [dataclasses.asdict(trial.setting) for trial in chosen],
        "chosen_reached": [[trial.requests_per_s, trial.latency_p99_s] for trial in chosen],
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    pathlib.Path(flags.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
