"""Placement by CP-SAT on one core: time, gap and peak memory at 48 devices, 48 of mixed kinds, and 1,024.

    python -m tests.benchmarks.placement --output=tests/benchmarks/results/placement

Costs are rooflines of GPT-3 shapes (weights and cache over bandwidth or operations over speed, collectives and
hand-overs by link), since they need no profile. Every case is solved alone, as one pipeline over all devices, and over
all numbers of replicas; every case is a process of its own, so that its peak memory is its own.
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

import numpy as np

from solver.facts.cluster import LEVELS, Cluster, DeviceKind, HostGroup, Link
from solver.search.cp_placement import best_placement
from solver.search.layout import lay_out
from solver.search.patterns import Load, MemoryNeed, make_patterns
from solver.search.placement_forms import rra_period
from solver.search.placement_problem import PlacementProblem, value_ns
from solver.search.pools import Pool, pools_of
from solver.search.replicas import best_replicas
from solver.search.start_placement import start_placement
from solver.simulate.costs import UnitCosts

A40 = DeviceKind("a40", 48 * 2**30, 696e9, 149.7e12)
A100 = DeviceKind("a100", 80 * 2**30, 2039e9, 312e12)
PCIE, NVLINK, POD = Link(5e-6, 25e9), Link(3e-6, 250e9), Link(1e-5, 12.5e9)
# Layers, hidden size: GPT-3 341B and 175B.
MODELS = {"gpt3-341b": (120, 15360), "gpt3-175b": (96, 12288), "gpt3-39b": (48, 8192)}
EFFICIENCY = 0.6
PROMPT_TOKENS, MEAN_CONTEXT = 256, 320.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem: a model on a cluster at one point (B_E, N_D) with mean residents n and micro-batch counts."""

    name: str
    model: str
    groups: tuple[tuple[str, int], ...]
    encode_batch: int
    rows: int
    iterations: int
    encode_micro: int
    decode_micro: int

    @property
    def cluster(self) -> Cluster:
        groups = tuple(HostGroup(kind, hosts, 1, 8) for kind, hosts in self.groups)
        return Cluster(self.name, "made up", (A40, A100), groups, NVLINK, NVLINK, POD)


CASES = (
    Case("48 A40", "gpt3-341b", (("a40", 6),), 32, 192, 16, 4, 6),
    Case("48 A40, small batch", "gpt3-341b", (("a40", 6),), 8, 40, 32, 2, 2),
    Case("48 A40, 39B", "gpt3-39b", (("a40", 6),), 32, 192, 16, 4, 6),
    Case("16 A100 + 32 A40", "gpt3-341b", (("a100", 2), ("a40", 4)), 32, 192, 16, 4, 6),
    Case("16 A100 + 32 A40, small batch", "gpt3-341b", (("a100", 2), ("a40", 4)), 8, 40, 32, 2, 2),
    Case("1,024 A100", "gpt3-341b", (("a100", 128),), 128, 768, 16, 16, 24),
    Case("1,024 A100, small batch", "gpt3-341b", (("a100", 128),), 32, 160, 32, 4, 4),
    Case("1,024 A100, 175B", "gpt3-175b", (("a100", 128),), 64, 384, 16, 8, 12),
)


def roofline_unit(kind: DeviceKind, tensor: int, hidden: int, link: Link, most_rows: int) -> UnitCosts:
    """Costs of a GPT-3 layer: 12 h^2 weights, 4 h cache bytes per token, two all-reduces where there are ranks."""
    rows = np.arange(most_rows + 1, dtype=np.float64)
    bandwidth, speed = kind.memory_bytes_per_s * EFFICIENCY, kind.flops_per_s * EFFICIENCY
    weights = 24 * hidden**2 / tensor

    def layer_s(tokens: np.ndarray, cache_bytes: np.ndarray) -> np.ndarray:
        compute = np.maximum((weights + cache_bytes / tensor) / bandwidth, weights * tokens / speed)
        reduce = 2 * (
            2 * (tensor - 1) * link.latency_s + 2 * (tensor - 1) / tensor * 2 * hidden * tokens / link.bytes_per_s
        )
        return np.where(tokens > 0, compute + reduce, 0.0)

    def moves(tokens: np.ndarray) -> dict[str, np.ndarray]:
        links = {"island": link, "host": link, "pod": POD}
        return {level: links[level].transfer_s(2 * hidden * tokens) * (tokens > 0) for level in LEVELS}

    contexts = np.array([1.0, 256.0, 1024.0])
    head = 2 * 50257 * hidden / tensor
    return UnitCosts(
        kind=kind.name,
        tensor=tensor,
        encode_s=layer_s(rows * PROMPT_TOKENS, rows * PROMPT_TOKENS * 4 * hidden),
        contexts=contexts,
        decode_s=np.stack([layer_s(rows, rows * context * 4 * hidden) for context in contexts]),
        embed_encode_s=1e-5 * (rows > 0),
        embed_decode_s=1e-5 * (rows > 0),
        head_encode_s=(head / bandwidth + 5e-5) * (rows > 0),
        head_decode_s=(head / bandwidth + 5e-5) * (rows > 0),
        hand_over_encode_s=moves(rows * PROMPT_TOKENS),
        hand_over_decode_s=moves(rows),
        weights_bytes=int(weights),
        embed_bytes=int(head),
        head_bytes=int(head),
        cache_token_bytes=4 * hidden // tensor,
        estimated=True,
    )


def problem_of(case: Case, pools: tuple[Pool, ...], units: Mapping[tuple[str, int], UnitCosts]) -> PlacementProblem:
    """The case's point on some pools."""
    layers = MODELS[case.model][0]
    loads = (
        Load("encode", case.encode_batch / case.encode_micro),
        Load("decode", case.rows / case.decode_micro, MEAN_CONTEXT),
        Load("call"),
    )
    patterns = make_patterns(
        units,
        pools,
        layers,
        loads,
        {"both": MemoryNeed(case.rows * 1.3 * MEAN_CONTEXT, stage_bytes=1e9)},
        {kind.name: 0.9 * kind.memory_bytes for kind in (A40, A100)},
    )
    return PlacementProblem(
        pools=pools,
        patterns=patterns,
        roles=("both",),
        layers=layers,
        most_stages=layers,
        micro_batches=(case.encode_micro, case.decode_micro, 1),
        path_ns=(0, 10_000, 0),
        objective=(rra_period([case.iterations]),),
    )


def units_of(case: Case) -> dict[tuple[str, int], UnitCosts]:
    hidden, most = MODELS[case.model][1], max(case.encode_batch, case.rows)
    links = {"a40": PCIE, "a100": NVLINK}
    kinds = {"a40": A40, "a100": A100}
    return {
        (name, tensor): roofline_unit(kinds[name], tensor, hidden, links[name], most)
        for name in sorted({name for name, _ in case.groups})
        for tensor in (1, 2, 4, 8)
    }


def run_case(case: Case, time_limit_s: float) -> dict[str, object]:
    """Both questions of one case, in this process."""
    units, pools = units_of(case), pools_of(case.cluster)
    started = time.perf_counter()
    problem = problem_of(case, pools, units)
    hint = start_placement(problem)
    prepared_s = time.perf_counter() - started
    single = best_placement(problem, time_limit_s, hint)
    single_s = time.perf_counter() - started
    links = [str(link) for each in lay_out(problem, single.counts) for link in each.links]
    charged = [str(problem.patterns[i].link) for i, n in single.counts.items() for _ in range(n)]
    # Every number of copies serves the same batch per copy; what it gains is batches per second.
    replicas = best_replicas(pools, lambda copies, share: problem_of(case, share, units), time_limit_s)
    replicas_s = time.perf_counter() - started - single_s
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
        "laid_out_as_charged": sorted(links) == sorted(charged),
        "stages": stages,
        "replicas": replicas.copies,
        "replicas_proven": replicas.proven,
        "replicas_seconds": replicas_s,
        "replicas_tried": len(replicas.seconds),
        "replicas_gain": (single.value_ns or 0) / replicas.value_ns if replicas.value_ns else None,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table_of(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| case | model | patterns | first s | best s | gap | seconds | copies (gain) | seconds, all copies | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, best = row["first_value_s"], row["value_s"]
        lines.append(
            f"| {row['name']} | {row['model']} | {row['patterns']} | {'-' if first is None else f'{first:.4f}'} | "
            f"{'-' if best is None else f'{best:.4f}'} | {row['gap']:.2%} | {row['seconds']:.2f} | "
            f"{row['replicas']} ({row['replicas_gain'] or 1:.2f}x) | {row['replicas_seconds']:.2f}"
            f"{'' if row['replicas_proven'] else ' (not closed)'} | {row['peak_mib']:.0f} |"
        )
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
        for name in ("prepared_s", "seconds", "replicas_seconds", "peak_mib"):
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
