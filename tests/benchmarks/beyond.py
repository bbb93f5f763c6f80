"""Beyond the paper: real traces against chunked prefill and disaggregation, and the joint search on 1,024 devices.

    python -m tests.benchmarks.beyond --output=tests/benchmarks/results/beyond

First part: Llama 3 8B on one H100 and 70B on eight, four traces, latency counted from the start of a request's encode
phase; what is left of the gain over static batching when the rival is a modern one. Second part: one process per
search on 128 hosts of 8 H100, so that its peak memory is its own. `--parts` chooses; `--pod` is such a process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import time

from solver.plan.schedule import Policy
from solver.search.outcome import Tally
from tests.benchmarks.paper import carried
from tests.benchmarks.paper_cases import (
    BATCH_STEP,
    Case,
    Options,
    bounds_of,
    described,
    ladder,
    run_case,
    searches,
    setting_of,
)  # fmt: skip
from tests.benchmarks.paper_gains import gap_of
from tests.benchmarks.paper_report import short_stages
from tests.benchmarks.provenance import origin, provenance

TRACES = ("azure-code", "sharegpt", "arxiv", "deepseek-r1")
SYSTEMS = (("llama-3-8b", "one-h100", 1), ("llama-3-70b", "dgx-h100", 8))
BOUNDS = ("30%", "inf")
POD = tuple(Case("llama-3-70b", "pod-1024-h100", 1024, task) for task in ("paper-t", "sharegpt"))
POD_POLICIES: tuple[Policy, ...] = ("rra", "waa")
RIVALS = {"ft": "static", "iteration": "iteration", "chunked": "chunked", "disaggregated": "disaggregated"}


def traces(options: Options) -> tuple[list[dict], list[str]]:
    """Rows, and why the rest was refused."""
    rows: list[dict] = []
    refused = []
    for system in SYSTEMS:
        for trace in TRACES:
            case = Case(*system, trace)
            try:
                own = bounds_of(ladder(setting_of(case, options.gap))[1])
            except ValueError as error:
                refused.append(f"{case.name}: {error}")
                continue
            rows += carried(list(run_case(case, options, {name: own[name] for name in BOUNDS})))
            print(case.name, flush=True)
    return rows, refused


def pod_search(index: int, policy: str, options: Options) -> dict:
    """One search in this process."""
    case = POD[index]
    began_s = time.monotonic()
    setting = setting_of(case, options.gap)
    prepared_s = time.monotonic() - began_s
    began_s, cpu_s = time.monotonic(), time.process_time()
    tally = Tally(began_s, began_s + options.time_limit_s)
    outcome = searches(options)[policy](setting, tally)
    bound = outcome.bound_rps
    firsts = [at_s for at_s, rps, _ in tally.trace if rps]
    return {
        "task": case.task,
        "policy": policy,
        "prepared_s": prepared_s,
        "seconds": time.monotonic() - began_s,
        "cpu_seconds": time.process_time() - cpu_s,
        "first_plan_s": firsts[0] if firsts else None,
        **described(outcome.best),
        "bound_rps": bound if math.isfinite(bound) else None,
        "gap": 1 - outcome.best.rps / bound if outcome.best and 0 < bound < math.inf else None,
        "complete": tally.complete,
        "nodes": tally.nodes,
        "evaluated": tally.evaluated,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def pod(time_limit_s: float, gap: float) -> list[dict]:
    """Every search in a process of its own."""
    rows = []
    for index in range(len(POD)):
        for policy in POD_POLICIES:
            command = [sys.executable, "-m", "tests.benchmarks.beyond", f"--pod={index},{policy}"]
            command += [f"--pod_limit_s={time_limit_s}", f"--gap={gap}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(POD[index].task, policy, f"{rows[-1]['seconds']:.1f} s", flush=True)
    return rows


def markdown_of(report: dict) -> str:
    parts = [
        "# Beyond the paper",
        origin(report, "ortools", "load"),
        "## Real traces",
        "Predicted requests per second (gap that the search left; `open`: time ended it before it had a bound). "
        "Bounds: "
        f"the 30th percentile of static batching's latencies over batches in steps of {BATCH_STEP}, and none; latency "
        f"of "
        "the answer of 99th percentile length, from the start of its encode phase. Chunked prefill with fused kernels. "
        f"{report['time_limit_s']:g} s a search.",
        _traces_table(report["traces"]),
        "\n".join(f"- {line}" for line in _remains(report["traces"])),
    ]
    if report["refused"]:
        parts += ["Refused: " + "; ".join(report["refused"])]
    parts += [
        "## 1,024 devices",
        f"Llama 3 70B on 128 hosts of 8 H100, no latency bound, one core, {report['pod_limit_s']:g} s.",
        _pod_table(report["pod"]),
    ]
    return "\n\n".join(parts) + "\n"


def _traces_table(rows: list[dict]) -> str:
    lines = [
        "| model, trace | bound s | RRA | WAA | disaggregated | chunked | iteration | static | best over static | over "
        "chunked | over disaggregated |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = max(row["rra"]["rps"], row["waa"]["rps"])
        over = [best / row[b]["rps"] if row[b] and row[b]["rps"] else None for b in ("ft", "chunked", "disaggregated")]
        cells = [
            f"{row['model']}, {row['task']}",
            "none" if row["bound_s"] is None else f"{row['bound_s']:.2f}",
            *(_found(row[p]) for p in ("rra", "waa", "disaggregated")),
            *(f"{row[p]['rps']:.2f}" if row[p] and row[p]["rps"] else "none" for p in ("chunked", "iteration", "ft")),
            *("-" if value is None else f"{value:.2f}x" for value in over),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _found(found: dict) -> str:
    if not found["rps"]:
        return "none"
    return f"{found['rps']:.2f} ({'open' if (gap := gap_of(found)) is None else format(gap, '.1%')})"


def _remains(rows: list[dict]) -> list[str]:
    """Of the gain over static batching, on a logarithmic scale, the share that is left over a rival."""
    lines = []
    for rival in ("iteration", "chunked", "disaggregated"):
        shares, ratios = [], []
        for row in rows:
            best = max(row["rra"]["rps"], row["waa"]["rps"])
            if best and row["ft"] and row[rival]["rps"] and best > row["ft"]["rps"]:
                shares.append(math.log(best / row[rival]["rps"]) / math.log(best / row["ft"]["rps"]))
                ratios.append(best / row[rival]["rps"])
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            ahead = sum(ratio > 1.005 for ratio in ratios)
            lines.append(
                f"over {rival}: {mean:.2f}x (geometric mean), {min(ratios):.2f}x to {max(ratios):.2f}x; ahead in "
                f"{ahead} of "
                f"{len(ratios)}; share of the gain over static that remains, by logarithms, mean of rows: "
                f"{sum(shares) / len(shares):.0%}"
            )
    return lines


def _pod_table(rows: list[dict]) -> str:
    lines = [
        "| task | policy | s (CPU) | prepared s | first plan s | rps | bound | gap | plan | nodes | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plan = "none"
        if row["rps"]:
            plan = f"{row['copies']} x TP {short_stages(row['stages'])}, B_E={row['batch']} N_D={row['iterations']}"
        cells = [
            row["task"],
            row["policy"],
            f"{row['seconds']:.1f} ({row['cpu_seconds']:.1f})",
            f"{row['prepared_s']:.2f}",
            "-" if row["first_plan_s"] is None else f"{row['first_plan_s']:.2f}",
            f"{row['rps']:.1f}",
            "open" if row["bound_rps"] is None else f"{row['bound_rps']:.1f}",
            "-" if row["gap"] is None else f"{row['gap']:.2%}",
            plan,
            str(row["nodes"]),
            f"{row['peak_mib']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="traces,pod")
    parser.add_argument("--time_limit_s", type=float, default=2.0, help="of each search on a trace")
    parser.add_argument("--pod_limit_s", type=float, default=60.0, help="of each search on 1,024 devices")
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--merge", action="store_true", help="parts not run are kept from the output's JSON")
    parser.add_argument("--pod", help="INDEX,POLICY: one search in this process, as JSON")
    parser.add_argument("--output", type=pathlib.Path, help="stem of the results files; standard output without")
    args = parser.parse_args()
    if args.pod:
        index, policy = args.pod.split(",")
        print(json.dumps(pod_search(int(index), policy, Options(args.pod_limit_s, args.gap))))
        return
    options = Options(args.time_limit_s, args.gap, ("iteration", "chunked"), ("waa", "disaggregated"))
    kept = json.loads(args.output.with_suffix(".json").read_text()) if args.merge else {}
    rows, refused = traces(options) if "traces" in args.parts else (kept.get("traces", []), kept.get("refused", []))
    given = [f"--{name}={getattr(args, name)}" for name in ("parts", "time_limit_s", "pod_limit_s", "gap")]
    report = {
        **provenance(f"python -m tests.benchmarks.beyond {' '.join(given)}", None),
        "ortools": importlib.metadata.version("ortools"),
        "load": f"{os.getloadavg()[1]:.1f} processes ran beside",
        "time_limit_s": args.time_limit_s,
        "pod_limit_s": args.pod_limit_s,
        "traces": rows,
        "refused": refused,
        "pod": pod(args.pod_limit_s, args.gap) if "pod" in args.parts else kept.get("pod", []),
    }
    if kept:
        report["command"] = f"{kept['command']} && {report['command']} --merge"
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(markdown_of(report))
    print(markdown_of(report))


if __name__ == "__main__":
    main()
