"""The paper, side by side: ExeGPT's scenarios under this repository's simulator, next to the figures it publishes.

    python -m tests.benchmarks.paper --output=tests/benchmarks/results/paper

Model x cluster x task x latency bound: throughput of the best RRA and the best WAA plan over FasterTransformer-like
static batching at the same bound, DeepSpeed-like (dsi), ORCA-like (iteration) and chunked prefill. Everything is a
prediction by closed forms from the shipped profiles; nothing here runs a model. `--models`, `--tasks` and `--bounds`
choose a part; `--budget_s` starts no further case after so many seconds, and the table says which were left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import time

from solver.plan.schedule import Policy
from solver.search.proof.limits import Limits
from tests.benchmarks.paper_cases import (
    BASELINES,
    BOUNDS,
    LARGE,
    SYSTEMS,
    TASKS,
    Case,
    Options,
    bounds_of,
    ladder,
    run_case,
    searches,
    setting_of,
    timed,
)  # fmt: skip
from tests.benchmarks.paper_gains import gap_of
from tests.benchmarks.paper_report import charts_of, markdown_of
from tests.benchmarks.provenance import provenance
from tests.benchmarks.table6 import table6

TRACES = ("azure-code", "sharegpt", "arxiv", "deepseek-r1")


def cases_of(models: list[str], tasks: list[str]) -> list[Case]:
    """Task by task, so that a run that is cut off has every model."""
    return [Case(*system, task) for task in tasks for system in SYSTEMS if system[0] in models]


def run(cases: list[Case], bounds: list[str], options: Options, budget_s: float) -> tuple[list[dict], list[str]]:
    """Rows, and a line for each case that was left out."""
    rows: list[dict] = []
    skipped = []
    began_s = time.monotonic()
    for case in cases:
        if time.monotonic() - began_s > budget_s:
            skipped.append(f"{case.name}: not started within {budget_s:g} s")
            continue
        # DeepSpeed, as in the paper, on the smallest model alone: its sweep is the longest.
        asked = options if case.model == "opt-13b" else dataclasses.replace(options, baselines=options.baselines[1:])
        try:
            own = bounds_of(ladder(setting_of(case, options.gap))[1])
            found = list(run_case(case, asked, {name: own[name] for name in bounds}))
        except ValueError as error:
            skipped.append(f"{case.name}: {error}")
            continue
        rows += carried(found)
        print(f"{time.monotonic() - began_s:6.1f} s  {case.name}", flush=True)
    return rows, skipped


def carried(rows: list[dict]) -> list[dict]:
    """Rows of one case by rising bound: what keeps a tighter bound keeps a looser one, and bounds the other way."""
    policies = [name for name, value in rows[0].items() if isinstance(value, dict) and "seconds" in value]
    for policy in policies:
        for tighter, looser in itertools.pairwise(rows):
            if tighter[policy]["rps"] > looser[policy]["rps"]:
                own = {name: looser[policy][name] for name in ("bound_rps", "ended_by_time", "seconds", "cpu_seconds")}
                looser[policy] = {**tighter[policy], **own, "carried_from": tighter["bound"]}
        for looser, tighter in itertools.pairwise(reversed(rows)):
            bounds = [b for b in (tighter[policy]["bound_rps"], looser[policy]["bound_rps"]) if b is not None]
            tighter[policy]["bound_rps"] = min(bounds, default=None)
        for row in rows:
            row[policy]["gap"] = gap_of(row[policy])
    return rows


def refused(gap: float) -> list[str]:
    """Real traces under the paper's models: why each is refused."""
    lines = []
    for system in SYSTEMS[:2]:
        for trace in TRACES:
            try:
                setting_of(Case(*system, trace), gap)
            except ValueError as error:
                lines.append(f"{system[0]}, {trace}: {error}")
    return lines


def main() -> None:
    models = list(dict.fromkeys(system[0] for system in SYSTEMS))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--bounds", default=",".join(BOUNDS))
    parser.add_argument("--time_limit_s", type=float, default=1.5, help="of each search")
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--budget_s", type=float, default=1e9, help="no case is started after so many seconds")
    parser.add_argument("--output", type=pathlib.Path, help="stem of the results files; standard output without")
    parser.add_argument("--merge", action="store_true", help="cases of this run replace those of the output's JSON")
    parser.add_argument("--again", choices=BASELINES, help="this baseline alone, for all rows of the output's JSON")
    parser.add_argument("--render", action="store_true", help="table and chart again from the output's JSON")
    args = parser.parse_args()
    if args.render:
        write(json.loads(args.output.with_suffix(".json").read_text()), args.output)
        return
    if args.again:
        again(args.output, args.again, args.time_limit_s)
        return
    options = Options(args.time_limit_s, args.gap, BASELINES)
    began_s = time.monotonic()
    known = table6(options)
    cases = cases_of(args.models.split(","), args.tasks.split(","))
    rows, skipped = run(cases, args.bounds.split(","), options, args.budget_s)
    given = [f"--{name}={getattr(args, name)}" for name in ("models", "tasks", "bounds", "time_limit_s", "gap")]
    report = {
        **provenance(f"python -m tests.benchmarks.paper {' '.join(given)}", None),
        "ortools": importlib.metadata.version("ortools"),
        "load": f"{os.getloadavg()[1]:.1f} processes ran beside",
        "seconds": time.monotonic() - began_s,
        "time_limit_s": args.time_limit_s,
        "gap": args.gap,
        "large": LARGE,
        "scenarios": rows,
        "table6": known,
        "skipped": skipped,
        "refused": refused(args.gap),
    }
    if args.output and args.merge:
        report = merged(json.loads(args.output.with_suffix(".json").read_text()), report)
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        write(report, args.output)
    print(markdown_of(report))


def merged(old: dict, new: dict) -> dict:
    """The old report with the new one's cases in place of its own; both commands are named."""
    done = {case_of(row) for row in new["scenarios"]}
    rows = [row for row in old["scenarios"] if case_of(row) not in done] + new["scenarios"]
    order = [Case(*system, task) for task in TASKS for system in SYSTEMS]
    return {
        **old,
        "command": f"{old['command']} && {new['command']} --merge",
        "load": f"{old['load']}; {new['load']}",
        "seconds": old["seconds"] + new["seconds"],
        "time_limit_s": max(old["time_limit_s"], new["time_limit_s"]),
        "scenarios": sorted(rows, key=lambda row: order.index(case_of(row))),
        "skipped": [line for line in old["skipped"] if not any(line.startswith(case.name + ":") for case in done)],
    }


def case_of(row: dict) -> Case:
    return Case(row["model"], row["cluster"], row["devices"], row["task"])


def again(output: pathlib.Path, policy: Policy, time_limit_s: float) -> None:
    """Searches one baseline anew at every bound of a report."""
    report = json.loads(output.with_suffix(".json").read_text())
    for case in dict.fromkeys(map(case_of, report["scenarios"])):
        rows = [row for row in report["scenarios"] if case_of(row) == case]
        setting = setting_of(case, report["gap"])
        for row in rows:
            bound_s = math.inf if row["bound_s"] is None else row["bound_s"]
            limited = dataclasses.replace(setting, limits=Limits(latency_s=bound_s))
            row[policy] = timed(limited, searches(Options(0.0, 0.0))[policy], time_limit_s)
        carried(rows)
    report["command"] += f" && python -m tests.benchmarks.paper --again={policy} --time_limit_s={time_limit_s}"
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    write(report, output)


def write(report: dict, output: pathlib.Path) -> None:
    """Table and chart beside the JSON."""
    output.with_suffix(".md").write_text(markdown_of(report))
    if report["scenarios"]:
        output.with_suffix(".svg").write_text(charts_of(report))


if __name__ == "__main__":
    main()
