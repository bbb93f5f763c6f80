"""Seconds per evaluated point (goal S3: at most 10 us): every policy's closed form over a large grid, on one core.

    python -m tests.benchmarks.evaluator --output=tests/benchmarks/results/evaluator

RRA over 50,000 points of (B_E, N_D), 1 <= B_E <= 200 and 1 <= N_D <= 250, task T of the paper, on pipelines of 1, 4 and
16 stages; with and without time per output token, which needs a weighted quantile over every output length. The median
of nine runs, in processor seconds of the one thread; each run makes its own Lengths, so that no steady state is left
over from the run before.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from solver.facts.cluster import Link
from solver.simulate.chunked import evaluate_chunked
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions, Points
from solver.simulate.rra import evaluate_rra
from solver.simulate.static import evaluate_static
from solver.simulate.unit_costs import unit_costs
from solver.simulate.waa import Split, evaluate_waa
from tests.benchmarks.provenance import provenance
from tests.solver.planner_cases import paper_task, random_pipeline, random_profile, small_cluster, small_spec

SEED, RUNS, GOAL_US = 1, 9, 10.0
BATCHES, ITERATIONS = np.arange(1, 201), np.arange(1, 251)
MOST_ROWS = 200 * 130

Evaluate = Callable[[Lengths], Points]


def cases() -> dict[str, Evaluate]:
    """Every grid by name."""
    rng = np.random.default_rng(SEED)
    batch, iterations = (column.ravel() for column in np.meshgrid(BATCHES, ITERATIONS))
    by_iteration, by_phase = Conditions(compaction="iteration", delivery="iteration"), Conditions()
    pipes = {stages: random_pipeline(rng, stages, MOST_ROWS) for stages in (1, 4)}
    # Sixteen stages alike but for their ends, as a planner would place them.
    first, inner, last = (random_pipeline(rng, 4, MOST_ROWS).stages[at] for at in (0, 1, 3))
    pipes[16] = Pipeline((first, *[inner] * 14, last), return_s=1e-4)
    found: dict[str, Evaluate] = {}

    def rra(pipeline: Pipeline, conditions: Conditions, with_tpot: bool) -> Evaluate:
        parts = len(pipeline.stages)
        return lambda lengths: evaluate_rra(
            pipeline, lengths, conditions, batch, iterations, 1, parts, with_tpot=with_tpot
        )

    for stages, pipeline in pipes.items():
        found[f"rra, {stages} stage{'s' * (stages > 1)}, compaction by iteration"] = rra(pipeline, by_iteration, False)
        found[f"rra, {stages} stage{'s' * (stages > 1)}, compaction by phase"] = rra(pipeline, by_phase, False)
    found["rra, 1 stage, compaction by phase, with TPOT"] = rra(pipes[1], by_phase, True)
    found["rra, 1 stage, padded shapes"] = _padded(rng)
    split = Split(pipes[4], pipes[1], Link(1e-5, 1e10))
    rows = np.tile(np.arange(1, 2001), 25)
    many = np.repeat(np.arange(1, 26), 2000)
    found["waa, 4 + 1 stages"] = lambda lengths: evaluate_waa(split, lengths, by_iteration, many, rows, with_tpot=False)
    few = np.arange(1, 2001)
    found["static, 4 stages"] = lambda lengths: evaluate_static(
        pipes[4], lengths, by_iteration, few, 1, 4, 4, with_tpot=False
    )
    found["iteration, 4 stages"] = lambda lengths: evaluate_iteration(
        pipes[4], lengths, by_iteration, few, 1, 4, with_tpot=False
    )
    found["chunked, 4 stages"] = lambda lengths: evaluate_chunked(
        pipes[4], lengths, by_iteration, 512 + few, few, 4, with_tpot=False
    )
    return found


def _padded(rng: np.random.Generator) -> Evaluate:
    """Up to 512 rows of this repository's kind of engine."""
    spec, workload = small_spec(), paper_task("T")
    padding = Padding(workload.most_tokens, workload.most_input)
    lengths = lengths_of(workload, "encode")
    unit = unit_costs(random_profile(rng, spec, padded=True), spec, lengths, small_cluster(), 1, 512, padding)
    pipeline = Pipeline((PlacedStage(unit, 4, True, True, None),))
    batch, iterations = (column.ravel() for column in np.meshgrid(np.arange(1, 41), ITERATIONS))
    return lambda fresh: evaluate_rra(
        pipeline, fresh, Conditions(), batch, iterations, padding=padding, with_tpot=False
    )


def measure(evaluate: Evaluate) -> tuple[int, float, float]:
    """Points, and microseconds per point: median and best of the runs."""
    workload = paper_task("T")
    seconds, points = [], 0
    for _ in range(RUNS):
        lengths = lengths_of(workload, "encode")
        began = time.process_time()
        points = evaluate(lengths).encode_batch.size
        seconds.append(time.process_time() - began)
    return points, statistics.median(seconds) / points * 1e6, min(seconds) / points * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="results file, without its suffix")
    output: pathlib.Path | None = parser.parse_args().output
    rows = []
    for name, evaluate in cases().items():
        points, median_us, best_us = measure(evaluate)
        rows.append({"case": name, "points": points, "median_us": round(median_us, 2), "best_us": round(best_us, 2)})
        print(f"{name}: {median_us:.2f} us a point (best {best_us:.2f}), {points} points", flush=True)
    if output is None:
        return
    # A machine that does other things at the time shares its caches, which processor seconds feel.
    header = {**provenance("python -m tests.benchmarks.evaluator", SEED), "load_average": round(os.getloadavg()[1], 1)}
    output.with_suffix(".json").write_text(json.dumps({**header, "goal_us": GOAL_US, "rows": rows}, indent=2) + "\n")
    lines = [
        "# Closed forms: time per evaluated point",
        "",
        f"Goal S3: at most {GOAL_US:g} us. Median of {RUNS} runs on one core. "
        + ", ".join(f"{key}: {value}" for key, value in header.items()),
        "",
        "| grid | points | us per point | best |",
        "|---|---|---|---|",
        *(f"| {row['case']} | {row['points']} | {row['median_us']} | {row['best_us']} |" for row in rows),
    ]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
