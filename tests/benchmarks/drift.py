"""Drift: what becomes of the bound and of the throughput when the traffic changes, under --replan=off, within and auto.

    python -m tests.benchmarks.drift --output=tests/benchmarks/results/drift.json

The embedded model on this machine: it is profiled, a plan is made for the first traffic under a bound, and the traffic
drifts (`drift_traffic`): a step of +60% in the mean output at saturation, and a day of ServeGen. The three modes see
the same requests, whose lengths they do not know. The bound counts from the encode phase; it is missed in a span of
about a hundred answers of which more than 1% took longer. Behind each run stands what its last state answers at
saturation on the last lengths, beside a fresh plan for these. Parts that the results hold already are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from drift_run import MODES, Bench  # noqa: E402
from drift_traffic import CACHE_TOKENS, MOST_INPUT, Scenario, day, step  # noqa: E402
from provenance import provenance  # noqa: E402

from exegpt_jax.profiler.grid import Limits  # noqa: E402
from exegpt_jax.profiler.measure import Wishes, profile_model  # noqa: E402
from solver.facts.cluster_file import load_cluster  # noqa: E402
from solver.facts.model_config import read_model_spec  # noqa: E402
from solver.facts.profile import Profile  # noqa: E402
from solver.facts.profile_file import read_profile, write_profile  # noqa: E402
from solver.facts.stolen import Stolen  # noqa: E402
from solver.facts.workload import Workload  # noqa: E402
from solver.plan.bounds import Bounds  # noqa: E402
from solver.plan.plan import Plan  # noqa: E402
from solver.search.planner import Infeasible, PlanRequest, plan_schedule  # noqa: E402

MODEL = ROOT / "configs" / "demo" / "numbers"
MAX_ROWS = 32
LOAD = 0.8
# Of the day's minutes, the step takes this share.
STEP_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans for the embedded model on one device of this machine."""

    profile: Profile

    def plan(self, workload: Workload, latency_s: float | None) -> Plan:
        request = PlanRequest(
            spec=read_model_spec(MODEL),
            model_name=MODEL.name,
            cluster=load_cluster("cpu", 1),
            profiles=(self.profile,),
            workload=workload,
            bounds=Bounds(latency_s=latency_s),
            policies=("rra",),
            dtype=self.profile.dtype,
            cache_dtype=self.profile.cache_dtype,
            max_prompt_tokens=MOST_INPUT,
            cache_tokens=CACHE_TOKENS,
            time_limit_s=60.0,
        )
        return plan_schedule(request).plan

    def bound_s(self, scenario: Scenario) -> float:
        """Between the least that a plan for any part can keep and what the best one for the first takes unbounded."""
        least_s = 0.0
        for part in scenario.parts:
            try:
                self.plan(part, 1e-9)
            except Infeasible as error:
                least_s = max(least_s, error.nearest_latency_s or 0.0)
        free = self.plan(scenario.parts[0], None).prediction
        assert free is not None
        return float(f"{max(math.sqrt(least_s * free.latency_s), 1.3 * least_s):.3g}")


def main() -> None:
    flags = _flags()
    kept = json.loads(flags.output.read_text()) if flags.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        path = flags.profile or pathlib.Path(folder) / "profile.json"
        if flags.profile is None or not path.exists():
            limits = Limits(MAX_ROWS, CACHE_TOKENS, MOST_INPUT)
            found = profile_model(MODEL, Wishes(limits, time_budget_s=flags.profile_s), path.with_suffix(".samples"))
            path.with_suffix(".samples").unlink()
            write_profile(found.profile, path)
        planner = Planner(read_profile(path))
        bench = Bench(MODEL, planner.profile, path, MAX_ROWS)
        results = kept.get("scenarios", {})
        for scenario, minutes in ((step(), flags.minutes * STEP_SHARE), (day(flags.data), flags.minutes)):
            if flags.only and scenario.name not in flags.only.split(","):
                continue
            before = results.get(scenario.name)
            results[scenario.name] = _run(scenario, minutes, planner, bench, before, flags.modes.split(","), flags.seed)
            _write(flags.output, {**provenance(" ".join(sys.argv), flags.seed), "scenarios": results})


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON; a table is written beside it")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the day; the step takes a fifth of it")
    parser.add_argument("--only", help="scenarios, of step and day")
    parser.add_argument("--modes", default=",".join(MODES), help="of off, within and auto")
    parser.add_argument("--profile", type=pathlib.Path, help="of this machine; measured, and kept there, if absent")
    parser.add_argument("--profile_s", type=float, default=300.0, help="time to measure it")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared/data/servegen/deepseek-r1")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _run(
    scenario: Scenario, minutes: float, planner: Planner, bench: Bench, kept: dict | None, wanted: list[str], seed: int
) -> dict[str, object]:
    """Every mode in turn, all on one bound; results of the same minutes are kept."""
    kept = kept if kept is not None and kept["minutes"] == minutes else None
    bound_s = kept["bound_s"] if kept else planner.bound_s(scenario)
    plans = [planner.plan(part, bound_s) for part in scenario.parts]
    rates = [plan.prediction.throughput_rps for plan in plans if plan.prediction is not None]
    print(
        f"{scenario.name}: bound {bound_s:g} s, fresh plans answer {', '.join(f'{r:.3g}/s' for r in rates)}", flush=True
    )
    modes = dict(kept["modes"]) if kept else {}
    for mode in wanted:
        if mode in modes:
            continue
        stolen = Stolen()
        outcome = bench.run(plans, rates, scenario, mode, 60 * minutes, LOAD, seed)
        modes[mode] = {**outcome.fields(bound_s), "stolen": stolen.share()}
        print(
            f"{scenario.name} {mode}: {json.dumps({k: v for k, v in modes[mode].items() if k != 'records'})}",
            flush=True,
        )
    return {
        "minutes": minutes, "bound_s": bound_s, "planned_rps": rates, "load": LOAD,
        "mean_output_tokens": [part.mean_output for part in scenario.parts], "modes": modes,
    }  # fmt: skip


def _write(path: pathlib.Path, found: dict[str, object]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(found))


def _table(found: dict) -> str:
    lines = [
        "# Drift: the bound and the throughput when the traffic changes",
        "",
        f"{found['cpu']}, {found['cores']} cores, {found['date']}; `{found['command']}`, seed {found['seed']}. "
        "`stolen`: share of the machine that others took during the run.",
    ]
    for name, scenario in found["scenarios"].items():
        means = " -> ".join(f"{mean:.3g}" for mean in scenario["mean_output_tokens"])
        lines += [
            "",
            f"## {name}: {scenario['minutes']:g} minutes, mean output {means} tokens, bound {scenario['bound_s']:g} s",
            "",
            "| replan | requests | lost | bound missed | answers over it | p99 | swaps | asked to swapped | held | "
            "at the end | beside a fresh plan | stolen |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for mode, got in sorted(scenario["modes"].items(), key=lambda item: MODES.index(item[0])):
            lines.append(
                f"| {mode} | {got['requests']} | {got['lost']} | {got['missed_s']:.1f} s | {got['over_share']:.2%} | "
                f"{got['p99_s']:.3f} s | {got['swaps']} | {got['swap_s']:.1f} s | {got['held_s']:.2f} s | "
                f"{got['final_rps']:.1f}/s | {got['final_rps'] / got['fresh_rps'] - 1:+.1%} | "
                f"{got['stolen']:.1%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
