"""Placement by CP-SAT on one core: time, gap and peak memory at 48 devices, 48 of mixed kinds, and 1,024.

    python -m tests.benchmarks.placement --output=tests/benchmarks/results/placement

Costs come from the shipped profiles, rows and contexts from the steady state of a task of the paper. Every case is
solved as one pipeline over all devices, and over all numbers of replicas at the same batch per copy; every case is a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

from solver.facts.cluster import Cluster
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.presets import find
from solver.facts.profile_file import find_profile
from solver.facts.workload_file import load_workload
from solver.search.placement.cp_placement import best_placement
from solver.search.placement.layout import lay_out
from solver.search.placement.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement.placement_forms import rra_period
from solver.search.placement.placement_problem import Form, Limit, PlacementProblem, value_ns
from solver.search.placement.pools import Pool, pools_of
from solver.search.placement.replicas import best_replicas
from solver.search.placement.start_placement import start_placement
from solver.simulate.costs import UnitCosts
from solver.simulate.lengths import lengths_of, residents
from solver.simulate.unit_costs import unit_costs

MEMORY_SHARE = 0.9
SLACK = 1.3  # allocated tokens over their mean
TEMPORARY_BYTES = 1e9


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem: a model on a cluster at one point (B_E, N_D) of a task.

    Attributes:
      clusters: presets; several stand side by side.
      samples: that stand for the decode phase.
      pass_share: limit of one pass of every load, from the least possible (0) to that of the best period (1).
    """

    name: str
    model: str
    clusters: tuple[tuple[str, int], ...]
    task: str
    encode_batch: int
    iterations: int
    encode_micro: int
    decode_micro: int
    samples: int = 1
    pass_share: float | None = None

    @property
    def cluster(self) -> Cluster:
        parts = [load_cluster(name, devices) for name, devices in self.clusters]
        groups = tuple(group for part in parts for group in part.groups)
        kinds = {kind.name: kind for part in parts for kind in part.kinds}
        return dataclasses.replace(parts[0], name=self.name, kinds=tuple(kinds.values()), groups=groups)


A40, MIXED, POD = (("paper-a40-48", 48),), (("paper-a100-16", 16), ("paper-a40-48", 32)), (("pod-1024-h100", 1024),)
CASES = (
    Case("48 A40", "gpt3-341b", A40, "paper-g", 16, 16, 4, 6),
    Case("48 A40, small batch", "gpt3-341b", A40, "paper-s", 8, 32, 2, 2),
    Case("48 A40, 39B", "gpt3-39b", A40, "paper-t", 16, 16, 4, 6),
    Case("48 A40, 39B, 3 samples, limit", "gpt3-39b", A40, "paper-t", 16, 48, 4, 6, 3, 0.5),
    Case("16 A100 + 32 A40", "gpt3-341b", MIXED, "paper-g", 16, 16, 4, 6),
    Case("16 A100 + 32 A40, small batch", "gpt3-341b", MIXED, "paper-s", 8, 32, 2, 2),
    Case("16 A100 + 32 A40, 3 samples", "gpt3-341b", MIXED, "paper-t", 16, 48, 4, 6, 3),
    Case("16 A100 + 32 A40, limit", "gpt3-341b", MIXED, "paper-t", 16, 16, 4, 6, 1, 0.3),
    Case("1,024 H100", "gpt3-341b", POD, "paper-g", 64, 16, 16, 24),
    Case("1,024 H100, small batch", "gpt3-341b", POD, "paper-s", 32, 32, 4, 4),
    Case("1,024 H100, 175B, limit", "gpt3-175b", POD, "paper-t", 64, 16, 8, 12, 1, 0.5),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What a case is made of."""

    cluster: Cluster
    spec: ModelSpec
    units: Mapping[tuple[str, int], UnitCosts]
    loads: tuple[Load, ...]
    need: MemoryNeed


def facts_of(case: Case) -> Facts:
    """Reads presets and profiles."""
    spec, cluster = read_model_spec(find("models", case.model)), case.cluster
    lengths = lengths_of(load_workload(case.task), spec.first_token)
    phase = residents(lengths, case.iterations)
    rows = case.encode_batch * phase.rows[0]
    most_rows = int(max(case.encode_batch, rows)) + 1
    units = {}
    for kind in cluster.kinds:
        profile = find_profile(spec, kind.name, "bfloat16")
        for tensor in profile.tensor_degrees:
            units[kind.name, tensor] = unit_costs(profile, spec, lengths, cluster, tensor, most_rows)
    # Rows stay to the end of the phase; the context grows, and so do the samples'.
    part = case.iterations // case.samples
    contexts = [float(phase.context[i * part : (i + 1) * part].mean()) for i in range(case.samples)]
    loads = (
        Load("encode", case.encode_batch / case.encode_micro),
        *(Load("decode", rows / case.decode_micro, context) for context in contexts),
        Load("call"),
    )
    tokens = case.encode_batch * float(phase.tokens.max()) * SLACK
    return Facts(cluster, spec, units, loads, MemoryNeed(tokens, stage_bytes=TEMPORARY_BYTES))


def problem_of(case: Case, facts: Facts, pools: tuple[Pool, ...]) -> PlacementProblem:
    """The case's point on some pools, without its limit."""
    layers = facts.spec.num_layers
    memory = {kind.name: MEMORY_SHARE * kind.memory_bytes for kind in facts.cluster.kinds}
    return PlacementProblem(
        pools=pools,
        patterns=make_patterns(facts.units, pools, layers, facts.loads, {"both": facts.need}, memory),
        roles=("both",),
        layers=layers,
        most_stages=layers,
        micro_batches=(case.encode_micro, *([case.decode_micro] * case.samples), 1),
        path_ns=(0, *([10_000] * case.samples), 0),
        objective=(rra_period([case.iterations // case.samples] * case.samples),),
    )


def limited(case: Case, problem: PlacementProblem) -> PlacementProblem:
    """With the case's limit, which takes two problems to place."""
    if case.pass_share is None:
        return problem
    zeros = (0,) * (case.samples + 2)
    one_pass = Form("pass", zeros, (*((1,) * (case.samples + 1)), 0), zeros)
    quickest = dataclasses.replace(problem, objective=(one_pass,))
    least = best_placement(quickest, 60.0, start_placement(quickest))
    usual = best_placement(problem, 60.0, start_placement(problem))
    if least.value_ns is None:
        raise ValueError(f"{case.name}: no placement at all")
    span = value_ns(quickest, usual.counts) - least.value_ns
    limit = Limit(one_pass, least.value_ns + int(case.pass_share * span))
    return dataclasses.replace(problem, limits=(limit,))


def run_case(case: Case, time_limit_s: float) -> dict[str, object]:
    """Both questions of one case, in this process."""
    facts = facts_of(case)
    pools = pools_of(facts.cluster)
    limits = limited(case, problem_of(case, facts, pools)).limits
    started, cpu = time.perf_counter(), time.process_time()
    problem = dataclasses.replace(problem_of(case, facts, pools), limits=limits)
    hint = start_placement(problem)
    prepared_s = time.perf_counter() - started
    single = best_placement(problem, time_limit_s, hint)
    single_s, single_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    links = [str(link) for each in lay_out(problem, single.counts) for link in each.links]
    charged = [str(problem.patterns[i].link) for i, n in single.counts.items() for _ in range(n)]
    started, cpu = time.perf_counter(), time.process_time()
    # Every number of copies serves the same batch per copy; what it gains is batches per second.
    replicas = best_replicas(
        pools, lambda copies, share: dataclasses.replace(problem_of(case, facts, share), limits=limits), time_limit_s
    )
    replicas_s, replicas_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    stages = [
        f"{n} x {p.layers} layers on {p.tensor} {problem.pools[p.pool].kind} ({p.position})"
        for i, n in single.counts.items()
        for p in [problem.patterns[i]]
    ]
    return {
        "name": case.name,
        "model": case.model,
        "patterns": len(problem.patterns),
        "prepared_s": prepared_s,
        "first_value_s": value_ns(problem, hint) / 1e9 if hint else None,
        "value_s": single.value_s,
        "gap": single.gap,
        "proven": single.proven,
        "seconds": single_s,
        "cpu_seconds": single_cpu_s,
        "laid_out_as_charged": sorted(links) == sorted(charged),
        "stages": stages,
        "replicas": replicas.copies,
        "replicas_proven": replicas.proven,
        "replicas_seconds": replicas_s,
        "replicas_cpu_seconds": replicas_cpu_s,
        "replicas_tried": len(replicas.seconds),
        "replicas_gain": (single.value_ns or 0) / replicas.value_ns if replicas.value_ns else None,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table_of(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| case | model | patterns | first s | best s | gap | s (CPU) | copies (gain) | s, all (CPU) | proven | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, best = row["first_value_s"], row["value_s"]
        cells = [
            row["name"],
            row["model"],
            row["patterns"],
            "-" if first is None else f"{first:.4f}",
            "-" if best is None else f"{best:.4f}",
            f"{row['gap']:.2%}",
            f"{row['seconds']:.2f} ({row['cpu_seconds']:.2f})",
            f"{row['replicas']} ({row['replicas_gain'] or 1:.2f}x)",
            f"{row['replicas_seconds']:.2f} ({row['replicas_cpu_seconds']:.2f})",
            "all" if row["replicas_proven"] else "not all",
            f"{row['peak_mib']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="stem of the results files; standard output without")
    parser.add_argument("--runs", type=int, default=3, help="of each case; medians of seconds are reported")
    parser.add_argument("--time_limit_s", type=float, default=10.0)
    parser.add_argument("--case", type=int, help="one case in this process, as JSON")
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(run_case(CASES[args.case], args.time_limit_s)))
        return
    rows = []
    for index in range(len(CASES)):
        command = [sys.executable, "-m", "tests.benchmarks.placement", f"--case={index}"]
        command.append(f"--time_limit_s={args.time_limit_s}")
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(args.runs)]
        row = runs[0]
        for name in ("prepared_s", "seconds", "cpu_seconds", "replicas_seconds", "replicas_cpu_seconds", "peak_mib"):
            row[name] = statistics.median(run[name] for run in runs)
        row["same_every_run"] = len({json.dumps(run["stages"]) for run in runs}) == 1
        rows.append(row)
        print(table_of(rows[-1:]).splitlines()[-1], flush=True)
    report = {
        "command": "python -m tests.benchmarks.placement",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"one of {os.cpu_count()} CPU cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("ortools", "numpy")},
        "seed": "none drawn; CP-SAT's is fixed",
        "load": f"{os.getloadavg()[1]:.1f} processes ran beside; CPU seconds tell what an idle core takes",
        "runs": args.runs,
        "time_limit_s": args.time_limit_s,
        "cases": rows,
    }
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        head = (
            f"# Placement\n\n{report['command']}; {report['date']}; {report['hardware']}; medians of {args.runs}.\n\n"
        )
        args.output.with_suffix(".md").write_text(head + table_of(rows) + "\n")


if __name__ == "__main__":
    main()
