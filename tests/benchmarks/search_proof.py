"""Proof of optimality over 50,000 candidates (goal S1), against looking at all of them and against Algorithm 1.

    python -m tests.benchmarks.search_proof --output=tests/benchmarks/results/search_proof

OPT-13B on the A100 and H200 tables, the paper's five tasks, tensor degrees 1, 2 and 4, two ways to run a phase, four
latency bounds each: the 10th, 30th and 70th percentile of latency over the candidates that fit, and none. Per case:
milliseconds of the search alone, of its tables, and of the workload's shapes made anew; candidates evaluated; the ratio
to the best of all; under the finite bounds the same for Algorithm 1 at both tolerances, which looks its candidates up
among all. Milliseconds are the processor's, of one thread; the first feasible plan's are the clock's.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time

import numpy as np

from solver.facts.cluster import Cluster
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import parse_config
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload_file import load_workload
from solver.importers.compose import compose
from solver.search.proof.algorithm1 import algorithm1
from solver.search.proof.bounds import RraBounds
from solver.search.proof.branch_and_bound import search
from solver.search.proof.floors import floors_of, memory_floor
from solver.search.proof.limits import Limits
from solver.search.proof.phase_shapes import phase_shapes
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.points import Conditions, Points
from solver.simulate.rra import evaluate_rra
from solver.simulate.unit_costs import unit_costs

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TASKS = ("paper-s", "paper-t", "paper-g", "paper-c1", "paper-c2")
CLUSTERS = ("one-a100", "one-h200")
DEGREES = (1, 2, 4)
POINTS, MOST_ITERATIONS, MOST_ROWS = 50_000, 250, 2048
USABLE = 0.9
CONDITIONS = {
    "as the paper": Conditions(compaction="iteration", delivery="iteration", cache_layout="paged"),
    "as the engine": Conditions(compaction="phase", delivery="phase", cache_layout="slots"),
}
TOLERANCES = (0.0, 0.05)
ALGORITHM1_MOST = 4_000


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One (cluster, task, degree, conditions): its grid and what all candidates do."""

    name: str
    pipeline: Pipeline
    lengths: Lengths
    conditions: Conditions
    capacity: tuple[float, ...]
    box: tuple[tuple[int, int], tuple[int, int]]

    def evaluate(self, batch: np.ndarray, iterations: np.ndarray) -> Points:
        return evaluate_rra(self.pipeline, self.lengths, self.conditions, batch, iterations, with_tpot=False)


def settings(smoke: bool) -> list[Setting]:
    spec = parse_config(json.loads((ROOT / "configs/models/opt-13b.json").read_text()))
    found = []
    for cluster_name in CLUSTERS[: 1 if smoke else None]:
        cluster = load_cluster(cluster_name)
        profile = compose(spec, cluster.kinds[0].name, "float16")
        for task in TASKS[: 1 if smoke else None]:
            lengths = lengths_of(load_workload(task), "encode")
            for tensor in DEGREES:
                for label, conditions in CONDITIONS.items():
                    name = f"{cluster_name} {task} TP{tensor} {label}"
                    found.append(_setting(name, spec, cluster, profile, lengths, tensor, conditions))
    return found


def _setting(
    name: str,
    spec: ModelSpec,
    cluster: Cluster,
    profile: Profile,
    lengths: Lengths,
    tensor: int,
    conditions: Conditions,
) -> Setting:
    unit = unit_costs(profile, spec, lengths, cluster, tensor, MOST_ROWS)
    pipeline = Pipeline((PlacedStage(unit, spec.num_layers, True, True, None),))
    iterations = min(MOST_ITERATIONS, lengths.most_decode)
    box = (1, POINTS // iterations), (1, iterations)
    return Setting(name, pipeline, lengths, conditions, (USABLE * cluster.kinds[0].memory_bytes,), box)


def measure(setting: Setting, rounds: int) -> list[dict[str, object]]:
    """One row per latency bound."""
    (_, most_batch), (_, most_iterations) = setting.box
    batch, iterations = (
        grid.ravel() for grid in np.meshgrid(np.arange(1, most_batch + 1), np.arange(1, most_iterations + 1))
    )
    began = time.process_time()
    points = setting.evaluate(batch, iterations)
    exhaustive_s = time.process_time() - began
    fits = Limits(memory_bytes=setting.capacity).kept(points)
    if not fits.any():
        return []
    # Shapes depend on workload, conditions and range alone; tables on the placement; both serve every latency bound.
    began = time.process_time()
    phase_shapes.__wrapped__(setting.lengths, setting.conditions, most_iterations)
    shapes_s = time.process_time() - began
    phase_shapes(setting.lengths, setting.conditions, most_iterations)
    memory = memory_floor(setting.pipeline, setting.lengths, setting.conditions, setting.capacity)
    began = time.process_time()
    bounds = RraBounds(floors_of(setting.pipeline, memory=memory), setting.lengths, setting.conditions, most_iterations)
    tables_s = time.process_time() - began

    def known(some_batch: np.ndarray, some_iterations: np.ndarray) -> Points:
        at = (some_iterations - 1) * most_batch + some_batch - 1
        columns = {field.name: getattr(points, field.name)[..., at] for field in dataclasses.fields(points)}
        return Points(**columns)

    rows = []
    for percent in (10, 30, 70, None):
        latency = math.inf if percent is None else float(np.percentile(points.latency_s[fits], percent))
        limits = Limits(latency_s=latency, memory_bytes=setting.capacity)
        best = float(points.throughput_rps[limits.kept(points)].max())
        taken = []
        for _ in range(rounds):
            began = time.process_time()
            found = search(bounds, setting.evaluate, limits, setting.box)
            taken.append(time.process_time() - began)
        first_s = next(row[0] for row in found.trace if row[1] > -math.inf)
        row: dict[str, object] = {
            "case": setting.name,
            "bound": "none" if percent is None else f"p{percent}",
            "latency_bound_s": None if percent is None else latency,
            "throughput_rps": found.objective,
            "ratio": found.objective / best,
            "gap": found.gap,
            "complete": found.complete,
            "search_ms": 1e3 * statistics.median(taken),
            "tables_ms": 1e3 * tables_s,
            "shapes_ms": 1e3 * shapes_s,
            "first_feasible_wall_ms": 1e3 * first_s,
            "evaluated_share": found.evaluated / len(batch),
            "nodes": found.nodes,
            "exhaustive_ms": 1e3 * exhaustive_s,
        }
        # Without a latency bound its one test of a block says nothing, and it looks at most of the grid.
        for tolerance in TOLERANCES if percent is not None else ():
            believed = algorithm1(known, limits, setting.box, tolerance, evaluation_limit=ALGORITHM1_MOST)
            label = f"algorithm1 eps={tolerance:g}"
            row[f"{label} ratio"] = believed.throughput_rps / best
            row[f"{label} evaluated"] = believed.evaluated
        rows.append(row)
    return rows


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    def column(name: str) -> list[float]:
        return [float(str(row[name])) for row in rows if name in row]

    figures: dict[str, float] = {"cases": len(rows)}
    for name in ("search_ms", "tables_ms", "shapes_ms", "first_feasible_wall_ms", "evaluated_share", "exhaustive_ms"):
        figures[f"{name} median"], figures[f"{name} worst"] = statistics.median(column(name)), max(column(name))
    total = [a + b + c for a, b, c in zip(*(column(n) for n in ("search_ms", "tables_ms", "shapes_ms")), strict=True)]
    figures["everything anew ms median"], figures["everything anew ms worst"] = statistics.median(total), max(total)
    figures["least ratio to the best"] = min(column("ratio"))
    figures["proved"] = sum(bool(row["complete"]) and row["gap"] == 0 for row in rows)
    for tolerance in TOLERANCES:
        label = f"algorithm1 eps={tolerance:g}"
        ratios = column(f"{label} ratio")
        figures[f"{label} cases"] = len(ratios)
        figures[f"{label} found nothing"] = sum(ratio == 0 for ratio in ratios)
        figures[f"{label} sub-optimal"] = sum(0 < ratio < 1 - 1e-9 for ratio in ratios)
        figures[f"{label} least ratio above 0"] = min((ratio for ratio in ratios if ratio > 0), default=0.0)
        figures[f"{label} cut short"] = sum(count >= ALGORITHM1_MOST for count in column(f"{label} evaluated"))
        figures[f"{label} evaluated median"] = statistics.median(column(f"{label} evaluated"))
    return figures


def report(result: dict[str, object]) -> str:
    figures, rows = result["summary"], result["rows"]
    assert isinstance(figures, dict)
    assert isinstance(rows, list)
    lines = [
        "# Proof search over 50,000 candidates",
        "",
        f"`{result['command']}`, {result['date']}, {result['machine']}",
    ]
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in figures.items()]
    shown = ["case", "bound", "throughput_rps", "ratio", "search_ms", "evaluated_share", "nodes"]
    shown += [f"algorithm1 eps={tolerance:g} ratio" for tolerance in TOLERANCES]
    lines += ["", "| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        found = [row.get(name, "") for name in shown]
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in found]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="results, without .json and .md")
    parser.add_argument("--rounds", type=int, default=2, help="searches per case; the median counts")
    parser.add_argument("--smoke", action="store_true", help="one cluster and one task")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for setting in settings(arguments.smoke):
        rows += measure(setting, arguments.rounds)
        print(f"{setting.name}: {len(rows)} cases", file=sys.stderr, flush=True)
        write(rows, arguments.output)


def write(rows: list[dict[str, object]], output: pathlib.Path) -> None:
    """Both files, anew after every setting, so that a run cut short leaves what it has."""
    result: dict[str, object] = {
        "command": "python -m tests.benchmarks.search_proof " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used; Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        "summary": summary(rows),
        "rows": rows,
    }
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(report(result))


if __name__ == "__main__":
    main()
