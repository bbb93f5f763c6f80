"""The Pareto front of 20 latency bounds against one search (goal S6: at most 5 times its cost), on one core.

    python -m tests.benchmarks.pareto_front --output=tests/benchmarks/results/pareto_front

One search is the median over the front's own bounds, each planned afresh in an order of its own; the front is one call
of `plan_front`, also from scratch. Processor seconds, imports and reading of files excluded; median of the rounds. The
two must give the same throughputs, or the figure is void.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.presets import find
from solver.facts.profile_file import find_profile
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds
from solver.search.planner import Planned, PlanRequest, plan_front, plan_schedule
from tests.benchmarks.provenance import provenance

CASES = (
    ("opt-13b", "one-a100", "paper-t"),
    ("opt-13b", "one-a100", "paper-s"),
    ("llama-3-8b", "one-h100", "paper-c1"),
)
POINTS, ROUNDS, GOAL = 20, 2, 5.0
POLICIES = ("rra",)
TIGHTEST = 1.02


def request_of(model: str, cluster: str, workload: str) -> PlanRequest:
    spec = read_model_spec(find("models", model))
    machines = load_cluster(cluster)
    kinds = dict.fromkeys(group.kind for group in machines.groups)
    profiles = tuple(find_profile(spec, kind, "bfloat16") for kind in kinds)
    return PlanRequest(spec, model, machines, profiles, load_workload(workload), Bounds(), policies=POLICIES)


def bounds_of(request: PlanRequest) -> list[float]:
    """From just above the tightest to the latency of the fastest plan, even in ratio."""
    free = plan_schedule(request).plan.prediction
    assert free is not None
    high = free.latency_s
    low = high
    for _ in range(30):
        outcome = plan_front(request, [low / 1.3])[0]
        if not isinstance(outcome, Planned):
            break
        low /= 1.3
    low *= TIGHTEST
    return [low * (high / low) ** (i / (POINTS - 1)) for i in range(POINTS)]


def measure(request: PlanRequest, bounds: list[float]) -> tuple[float, float, list[float], list[float]]:
    """Seconds of one search and of the front; throughputs of both."""
    single_s, single = [], []
    for latency_s in bounds:
        asked = dataclasses.replace(request, bounds=Bounds(latency_s=latency_s))
        began = time.process_time()
        plan = plan_schedule(asked).plan
        single_s.append(time.process_time() - began)
        assert plan.prediction is not None
        single.append(plan.prediction.throughput_rps)
    began = time.process_time()
    found = plan_front(request, bounds)
    front_s = time.process_time() - began
    rates = [p.plan.prediction.throughput_rps for p in found if isinstance(p, Planned) and p.plan.prediction]
    return statistics.median(single_s), front_s, single, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="results file, without its suffix")
    output: pathlib.Path | None = parser.parse_args().output
    rows = []
    for case in CASES:
        request = request_of(*case)
        bounds = bounds_of(request)
        rounds = [measure(request, bounds) for _ in range(ROUNDS)]
        single_s, front_s = (statistics.median(values) for values in list(zip(*rounds, strict=True))[:2])
        equal = all(
            len(a) == len(b) and max(abs(x / y - 1) for x, y in zip(a, b, strict=True)) < 1e-9 for _, _, a, b in rounds
        )
        rows.append(
            {"case": "/".join(case), "search_s": round(single_s, 4), "front_s": round(front_s, 4),
             "ratio": round(front_s / single_s, 2), "equal": equal, "throughput_rps": rounds[0][3]}
        )  # fmt: skip
        print(f"{'/'.join(case)}: search {single_s:.3f} s, front {front_s:.3f} s, {front_s / single_s:.2f}x, {equal=}")
    if output is None:
        return
    header = provenance("python -m tests.benchmarks.pareto_front", None)
    record = {**header, "goal": GOAL, "points": POINTS, "policies": POLICIES, "rows": rows}
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        "# Pareto front of 20 bounds against one search",
        "",
        f"Goal S6: at most {GOAL:g} times. Median of {ROUNDS} rounds, processor seconds. "
        + ", ".join(f"{key}: {value}" for key, value in header.items()),
        "",
        "| model / cluster / workload | one search, s | front, s | ratio | same throughputs |",
        "|---|---|---|---|---|",
        *(f"| {r['case']} | {r['search_s']} | {r['front_s']} | {r['ratio']} | {r['equal']} |" for r in rows),
    ]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
