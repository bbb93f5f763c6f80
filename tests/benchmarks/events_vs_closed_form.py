"""The event simulation against the closed forms (goal A6): RRA at fixed B_E, then the other policies.

    python -m tests.benchmarks.events_vs_closed_form --output=tests/benchmarks/results/events_vs_closed_form

Tasks of the paper on random pipelines of 1 to 4 unequal stages (seeded). RRA is held to the goal: throughput within
2%, L99 within 3% (mean latency of requests of exactly the 99th percentile's length), mean residents within 1%,
variance within the larger of 5% and 3 standard errors. Closed forms see mean batches, the simulation sees the batch
that is there. The other policies are reported without a goal.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import pathlib

import numpy as np

from solver.facts.cluster import Link
from solver.facts.workload import Workload
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.chunked import evaluate_chunked, whole_prompts
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.costs import Pipeline
from solver.simulate.events.arrivals import saturated
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.lengths import Lengths, lengths_of, residents
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from solver.simulate.static import evaluate_static
from solver.simulate.waa import Split, evaluate_waa
from tests.benchmarks.provenance import provenance
from tests.solver.planner_cases import PAPER_TASKS, paper_task, random_pipeline

STAGE = StageSpec("both", (0, 1), (0,), 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One RRA candidate."""

    task: str
    stages: int
    encode_batch: int
    decode_iterations: int
    parts: int
    compaction: str
    delivery: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Errors:
    """Simulated over predicted, minus 1; and three standard errors of the residents' mean and variance, relative."""

    throughput: float
    latency: float
    residents: float
    variance: float
    residents_noise: float
    variance_noise: float

    def within_goal(self) -> bool:
        return (
            abs(self.throughput) <= 0.02
            and abs(self.latency) <= 0.03
            and abs(self.residents) <= max(0.01, self.residents_noise)
            and abs(self.variance) <= max(0.05, self.variance_noise)
        )


def compare_rra(case: Case, phases: int, workload: Workload | None = None, pipeline: Pipeline | None = None) -> Errors:
    """Runs both on one candidate."""
    rng = np.random.default_rng(case.seed)
    workload = workload or paper_task(case.task)
    lengths = lengths_of(workload, "encode")
    found = residents(lengths, case.decode_iterations)
    rows = case.encode_batch * found.rows[0]
    most = math.ceil(rows + 8 * math.sqrt(rows) + 2 * case.encode_batch)
    pipeline = pipeline or random_pipeline(rng, case.stages, most)
    conditions = Conditions(compaction=case.compaction, delivery=case.delivery)
    predicted = evaluate_rra(
        pipeline,
        lengths,
        conditions,
        np.array([case.encode_batch]),
        np.array([case.decode_iterations]),
        case.parts,
        case.parts,
    )
    outcome = run_rra(case, phases, lengths, pipeline, conditions)
    d99 = workload.output_percentile(99)
    mean_noise, variance_noise = _noise(lengths, case.decode_iterations, outcome.phases)
    return Errors(
        throughput=outcome.throughput_rps / float(predicted.throughput_rps[0]) - 1,
        latency=outcome.latency_of_output_s(d99) / float(predicted.latency_s[0]) - 1,
        residents=outcome.residents_mean / rows - 1,
        variance=outcome.residents_variance / (case.encode_batch * found.rows_variance) - 1,
        residents_noise=3 * mean_noise * math.sqrt(found.rows_variance / case.encode_batch) / found.rows[0],
        variance_noise=3 * variance_noise,
    )


def run_rra(case: Case, phases: int, lengths: Lengths, pipeline: Pipeline, conditions: Conditions) -> Outcome:
    """At saturation, as many phases measured as asked."""
    decode_batch = math.ceil(case.encode_batch * residents(lengths, case.decode_iterations).rows[0])
    schedule = Schedule(
        policy="rra",
        encode_batch=case.encode_batch,
        decode_iterations=case.decode_iterations,
        decode_batch=decode_batch,
        max_rows=pipeline.most_rows,
        stages=(STAGE,),
        micro_batch=math.ceil(decode_batch / case.parts),
        encode_micro_batch=math.ceil(case.encode_batch / case.parts),
    )
    filling = -(-lengths.most_decode // case.decode_iterations)
    requests = case.encode_batch * (2 * filling + 2 + phases)
    demand = saturated(lengths.workload, requests, seed=case.seed)
    whole = whole_prompts(lengths.mean_input, lengths.mean_input2)
    machines = Machines(pipeline, pipeline, lengths.mean_input, whole_prompts=whole)
    return simulate(schedule, machines, demand, conditions, corrected=False)


def _noise(lengths: Lengths, iterations: int, phases: int) -> tuple[float, float]:
    """Standard errors of the mean, in deviations, and of the variance, relative, of residents over so many phases.

    Residents of phases k apart share the cohorts still alive: their covariance is B_E sum_a P(K > a + k) P(K <= a).
    """
    alive = lengths.alive[1::iterations]
    covariance = np.array([(alive[k:] * (1 - alive[: len(alive) - k])).sum() for k in range(len(alive))])
    correlation = covariance / covariance[0]
    mean = math.sqrt((1 + 2 * correlation[1:].sum()) / phases)
    return mean, math.sqrt(2 * (1 + 2 * (correlation[1:] ** 2).sum()) / phases)


def cases(count: int, seed: int) -> list[Case]:
    """Random candidates of the paper's tasks, at least four rows to a micro-batch."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        task = list(PAPER_TASKS)[index % len(PAPER_TASKS)]
        stages = int(rng.integers(1, 5))
        parts = int(rng.choice([1, stages]))
        shape = [("iteration", "iteration"), ("phase", "phase"), ("phase", "phase+1")][int(rng.integers(3))]
        batch = parts * int(rng.integers(4, 24))
        iterations = int(2 ** rng.integers(0, 6))
        found.append(Case(task, stages, batch, iterations, parts, *shape, seed=seed + index))
    return found


OTHERS = ("static", "dsi", "iteration", "chunked", "waa")


def compare_other(policy: str, task: str, seed: int, phases: int) -> dict[str, object]:
    """One candidate of another policy on a pipeline of two stages (static, dsi) or one."""
    rng = np.random.default_rng(seed)
    lengths = lengths_of(paper_task(task), "encode")
    rows, batch, parts = 96, 16, 2 if policy in ("static", "dsi") else 1
    pipeline = random_pipeline(rng, parts, 400)
    conditions = Conditions(compaction="iteration", delivery="iteration")
    encode_batch, decode_batch, budget, iterations, encode_rows, hand_over_s = rows, rows, 0, 1, rows, 0.0
    encoder = pipeline
    if policy in ("static", "dsi"):
        iterations, encode_rows = 4, rows // (4 if policy == "dsi" else 2)
        points = evaluate_static(
            pipeline, lengths, conditions, np.array([rows]), iterations, rows // encode_rows, parts
        )
    elif policy == "iteration":
        points = evaluate_iteration(pipeline, lengths, conditions, np.array([rows]))
    elif policy == "chunked":
        budget = round(1.05 * rows * (1 + lengths.mean_input / lengths.mean_decode))
        points = evaluate_chunked(pipeline, lengths, conditions, np.array([budget]), np.array([rows]))
    else:
        encoder, encode_batch, encode_rows = random_pipeline(rng, 1, 100), batch, batch
        # Encode devices as slow as keep decode at about the rows asked for.
        pace = rows / (lengths.mean_decode * float(pipeline.decode_s(np.array(float(rows)), np.array(300.0))[0]))
        encoder = _scaled(encoder, batch / (pace * float(encoder.encode_s(np.array(float(batch)))[0])))
        split = Split(encoder, pipeline, Link(1e-6, 1e12))
        points = evaluate_waa(split, lengths, conditions, np.array([batch]), np.array([300]))
        decode_batch = 300
    schedule = Schedule(
        policy=policy,
        encode_batch=encode_batch,
        decode_iterations=iterations,
        decode_batch=decode_batch,
        max_rows=decode_batch,
        stages=(STAGE,),
        micro_batch=math.ceil(decode_batch / parts),
        encode_micro_batch=encode_rows,
        token_budget=budget,
    )
    requests = 30 * rows if policy in ("static", "dsi") else min(phases, 6000) * 4
    demand = saturated(lengths.workload, requests, seed)
    machines = Machines(encoder, pipeline, lengths.mean_input, hand_over_s)
    outcome = simulate(schedule, machines, demand, conditions, corrected=False)
    d99 = lengths.workload.output_percentile(99)
    return {
        "policy": policy,
        "task": task,
        "throughput": outcome.throughput_rps / float(points.throughput_rps[0]) - 1,
        "latency": outcome.latency_of_output_s(d99) / float(points.latency_s[0]) - 1,
    }


def _scaled(pipeline: Pipeline, factor: float) -> Pipeline:
    """The same stages, encoding `factor` times as long."""
    stages = tuple(
        dataclasses.replace(
            stage,
            unit=dataclasses.replace(
                stage.unit,
                encode_s=stage.unit.encode_s * factor,
                embed_encode_s=stage.unit.embed_encode_s * factor,
                head_encode_s=stage.unit.head_encode_s * factor,
            ),
        )
        for stage in pipeline.stages
    )
    return Pipeline(stages, pipeline.return_s)


def table(results: dict[str, object], rows: list[dict[str, object]], others: list[dict[str, object]]) -> str:
    """The results as Markdown."""
    columns = ("throughput", "latency", "residents", "variance")
    lines = [
        "# Event simulation against closed form",
        "",
        f"`{results['command']}`, {results['date']}, {results['cpu']}. Errors are simulated / predicted - 1.",
        "",
        f"RRA, {len(rows)} candidates: {results['within_goal']} within the goal (throughput 2%, L99 3%, mean residents",
        "1%, variance 5% or 3 standard errors).",
        "",
        "| error | median of sizes | 90th percentile | largest |",
        "|---|---|---|---|",
    ]
    for name in columns:
        sizes = np.abs([float(row[name]) for row in rows])
        lines.append(f"| {name} | {np.median(sizes):.2%} | {np.quantile(sizes, 0.9):.2%} | {sizes.max():.2%} |")
    lines += ["", "Beyond the goal:", ""]
    lines += [f"- {row}" for row in rows if not row["within_goal"]] or ["- none"]
    lines += ["", "Other policies, medians of sizes (largest):", "", "| policy | throughput | L99 | candidates |"]
    lines += ["|---|---|---|---|"]
    for policy in sorted({str(row["policy"]) for row in others}):
        found = [row for row in others if row["policy"] == policy]
        cells = []
        for name in ("throughput", "latency"):
            sizes = np.abs([float(row[name]) for row in found])
            cells.append(f"{np.median(sizes):.2%} ({sizes.max():.2%})")
        lines.append(f"| {policy} | {' | '.join(cells)} | {len(found)} |")
    lines += [
        "",
        "WAA's latency lies above its closed form where few residents meet large batches: that takes an iteration's",
        "time at the mean of residents, while a request sees E[n^2] / E[n] of them (G: 15.2 where the mean is 12.3).",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="results files' stem (.json and .md); printed if absent")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--phases", type=int, default=6000)
    parser.add_argument("--tasks", type=int, default=5, help="of the paper, for the other policies")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for case in cases(options.candidates, options.seed):
        errors = compare_rra(case, options.phases)
        rows.append({**dataclasses.asdict(case), **dataclasses.asdict(errors), "within_goal": errors.within_goal()})
    others = [
        compare_other(policy, task, options.seed, options.phases)
        for policy in OTHERS
        for task in itertools.islice(PAPER_TASKS, options.tasks)
    ]
    command = (
        f"python -m tests.benchmarks.events_vs_closed_form --candidates={options.candidates} "
        f"--phases={options.phases} --seed={options.seed}"
    )
    results: dict[str, object] = {**provenance(command, options.seed), "rra": rows, "others": others}
    results["within_goal"] = sum(bool(row["within_goal"]) for row in rows)
    text = table(results, rows, others)
    print(text)
    if options.output:
        path = pathlib.Path(options.output)
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
