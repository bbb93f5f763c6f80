"""Placement and batch jointly (goal S2): how close the proof over all placements of RRA comes, and what it takes.

    python -m tests.benchmarks.joint --output=tests/benchmarks/results/joint

Per case the planner searches RRA alone, with and without a latency bound, no margin, on one core. The bound covers
every number of copies, stages, tensor degree per stage, division of layers, B_E and N_D, at powers of two of
micro-batches. Seconds are the processor's; on the clock they were so much longer as other processes ran beside.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import time

from solver.facts import presets
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.profile_file import find_profile
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds
from solver.search.planner import Infeasible, PlanRequest, plan_front
from tests.benchmarks.provenance import origin, provenance


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on so many devices of a cluster, a task, and a latency bound in seconds."""

    model: str
    cluster: str
    devices: int
    task: str
    bound_s: float


CASES = (
    Case("opt-13b", "paper-a40-48", 4, "paper-s", 11.5),
    Case("opt-13b", "paper-a40-48", 4, "paper-t", 20.0),
    Case("opt-13b", "paper-a40-48", 8, "paper-t", 20.0),
    Case("llama-3-70b", "dgx-h100", 8, "paper-c1", 12.0),
    Case("llama-3-70b", "dgx-a100", 8, "paper-g", 15.0),
    Case("gpt3-39b", "paper-a40-48", 16, "paper-s", 20.0),
    Case("gpt3-175b", "paper-a100-16", 16, "paper-t", 40.0),
    Case("gpt3-101b", "paper-a40-48", 32, "paper-c1", 60.0),
    Case("gpt3-341b", "paper-a40-48", 48, "paper-t", 120.0),
)


def measure(case: Case, bound_s: float | None, time_limit_s: float) -> dict[str, object]:
    """One search."""
    spec, cluster = read_model_spec(presets.find("models", case.model)), load_cluster(case.cluster, case.devices)
    profiles = tuple(find_profile(spec, kind.name, "bfloat16") for kind in cluster.kinds)
    workload = load_workload(case.task)
    request = PlanRequest(spec, case.model, cluster, profiles, workload, Bounds(), ("rra",), 0.0, time_limit_s, 0.0)
    load = os.getloadavg()[0]
    began_s, wall_s = time.process_time(), time.monotonic()
    (found,) = plan_front(request, [bound_s])
    row: dict[str, object] = {
        **dataclasses.asdict(case),
        "bound_s": bound_s,
        "cpu_s": time.process_time() - began_s,
        "wall_s": time.monotonic() - wall_s,
        "load": load,
    }
    if isinstance(found, Infeasible):
        return {**row, "infeasible": str(found)}
    plan = found.plan
    certificate, prediction, schedule = plan.certificate, plan.prediction, plan.schedule
    assert certificate is not None
    assert prediction is not None
    degrees = [stage.tensor for stage in schedule.stages]
    return {
        **row,
        "throughput_rps": prediction.throughput_rps,
        "best_bound_rps": certificate.best_bound_rps,
        "gap": certificate.gap,
        "ended": certificate.ended,
        "nodes": certificate.nodes,
        "copies": plan.replicas,
        "degrees": degrees,
        "encode_batch": schedule.encode_batch,
        "decode_iterations": schedule.decode_iterations,
    }


def report(results: dict[str, object]) -> str:
    """The results as Markdown."""
    rows = results["rows"]
    assert isinstance(rows, list)
    lines = [
        "# Placement and batch jointly",
        "",
        origin(results, "ortools"),
        "",
        "| model, devices, task | bound s | rps | gap | ended | plan | s of CPU | s | load | nodes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row['model']}, {row['devices']} of {row['cluster']}, {row['task']}"
        bound = "none" if row["bound_s"] is None else f"{row['bound_s']:g}"
        times = f"{row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['load']:.1f}"
        if "infeasible" in row:
            lines.append(f"| {name} | {bound} | - | - | {row['infeasible']} | - | {times} | - |")
            continue
        degrees = ", ".join(f"{row['degrees'].count(t)} x TP {t}" for t in sorted(set(row["degrees"])))
        plan = f"{row['copies']} of ({degrees}), B_E={row['encode_batch']} N_D={row['decode_iterations']}"
        gap = "open" if row["gap"] is None else f"{row['gap']:.3%}"
        lines.append(
            f"| {name} | {bound} | {row['throughput_rps']:.4g} | {gap} | {row['ended']} | {plan} | {times} "
            f"| {row['nodes']} |"
        )
    gaps = [row["gap"] for row in rows if row.get("gap") is not None]
    times_s = [row["cpu_s"] for row in rows]
    lines += [
        "",
        f"Gap: median {statistics.median(gaps):.3%}, worst {max(gaps):.2%} of {len(gaps)}; at most 0.1% in "
        f"{sum(gap <= 1e-3 for gap in gaps)}. Seconds of CPU: median {statistics.median(times_s):.1f}, worst "
        f"{max(times_s):.1f}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="results file without suffix; printed if absent")
    parser.add_argument("--time_limit_s", type=float, default=60.0, help="for each search")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    flags = parser.parse_args()
    command = f"python -m tests.benchmarks.joint --time_limit_s={flags.time_limit_s:g}"
    rows = []
    for case in CASES[: flags.cases]:
        for bound_s in (case.bound_s, None):
            rows.append(measure(case, bound_s, flags.time_limit_s))
            print(rows[-1], flush=True)
    results = {**provenance(command, None), "ortools": importlib.metadata.version("ortools"), "rows": rows}
    if flags.output:
        output = pathlib.Path(flags.output)
        output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        output.with_suffix(".md").write_text(report(results))
    else:
        print(report(results))


if __name__ == "__main__":
    main()
