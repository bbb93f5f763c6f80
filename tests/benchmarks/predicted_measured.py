"""Predicted beside measured: profile a model on this machine, choose schedules for three bounds, run each, compare.

    python tests/benchmarks/predicted_measured.py --output=tests/benchmarks/results/predicted_measured.json

For each model (the embedded one, the 88M Llama) the profiler times the engine's programs; the planner finds the RRA
plan with the highest throughput under a tight, a middle and no latency bound; the Runner then executes each plan as it
stands on the real engine at saturation, on answers whose lengths it does not know. Runs of the schedules take turns,
with a fixed control loop before and after each; a run around which it moved by more than 5% is repeated, at most three
times, then kept and counted as noisy. Measured is the steady part of a run, by the rule of the event simulation: from
the first phase when whoever came first must have gone, to the last phase that admits. Beside it stand two predictions:
the closed form's for the workload, and the event simulation's for the very requests of the run, run-time correction of
B_E, finite run and all.
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
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import jax  # noqa: E402
import model88m  # noqa: E402
import numpy as np  # noqa: E402
from duel import CONTROL_TOLERANCE, control_s  # noqa: E402
from engine_costs import EngineCosts  # noqa: E402

from exegpt_jax.engine.api import Sampling  # noqa: E402
from exegpt_jax.engine.compiling import forbid_compilations, keep_on_disk  # noqa: E402
from exegpt_jax.engine.engine import Engine  # noqa: E402
from exegpt_jax.engine.executor import LocalExecutor  # noqa: E402
from exegpt_jax.profiler.grid import Limits  # noqa: E402
from exegpt_jax.profiler.measure import Wishes, profile_model  # noqa: E402
from exegpt_jax.runner.events import Event, Finished  # noqa: E402
from exegpt_jax.runner.loop import Runner  # noqa: E402
from exegpt_jax.runner.request import Request  # noqa: E402
from exegpt_jax.sharding.stage import Stage  # noqa: E402
from exegpt_jax.testing.hidden_lengths import HiddenLengths  # noqa: E402
from exegpt_jax.weights.loading import load_stage  # noqa: E402
from solver.facts.cluster_file import load_cluster  # noqa: E402
from solver.facts.hardware import cpu_model  # noqa: E402
from solver.facts.model_config import read_model_spec  # noqa: E402
from solver.facts.profile import Profile  # noqa: E402
from solver.facts.profile_file import read_profile, write_profile  # noqa: E402
from solver.facts.workload import Workload, merge  # noqa: E402
from solver.plan.bounds import Bounds  # noqa: E402
from solver.plan.plan import Plan  # noqa: E402
from solver.plan.schedule import Schedule, StageSpec  # noqa: E402
from solver.plan.timeline import Timeline  # noqa: E402
from solver.search.planner import Infeasible, PlanRequest, plan_schedule  # noqa: E402
from solver.simulate.costs import Pipeline, PlacedStage  # noqa: E402
from solver.simulate.events.arrivals import Demand  # noqa: E402
from solver.simulate.events.phases import PhaseLoop  # noqa: E402
from solver.simulate.events.queue import Room  # noqa: E402
from solver.simulate.lengths import Lengths, lengths_of  # noqa: E402
from solver.simulate.padding import Padding  # noqa: E402
from solver.simulate.points import Conditions  # noqa: E402
from solver.simulate.rra import evaluate_rra  # noqa: E402
from solver.simulate.unit_costs import unit_costs  # noqa: E402

REPEATS_OF_NOISY_RUNS = 3
GOALS = {"throughput": 0.08, "p99": 0.09}
PLANNED_PERCENTILE = 99.5


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and what is asked of it: prompts and outputs are normals cut to a range, rounded up.

    Attributes:
      name: of the model.
      inputs, outputs: (mean, deviation, least, most) of the normal and its range.
      max_rows: the profile's limit, and so the schedules'.
      requests: in one run.
    """

    name: str
    inputs: tuple[float, float, int, int]
    outputs: tuple[float, float, int, int]
    max_rows: int
    requests: int

    def directory(self) -> pathlib.Path:
        if self.name == "numbers":
            return ROOT / "configs" / "demo" / "numbers"
        return model88m.make(ROOT / ".cache" / "benchmarks" / "llama-88m")


# Lengths after ExeGPT's tasks S (summarisation: outputs 32, 13, at most 80) and C1 (64, 30, at most 160); prompts
# as long as these models allow.
TASKS = {
    "numbers": Task("numbers", (24.0, 12.0, 4, 64), (31.7, 13.4, 1, 80), 32, 2000),
    "llama-88m": Task("llama-88m", (64.0, 29.0, 8, 128), (62.0, 32.4, 1, 160), 32, 400),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a run gave, or should give."""

    throughput_rps: float
    p99_s: float

    def error(self, measured: Figures) -> Figures:
        """Relative, of this prediction."""
        return Figures(self.throughput_rps / measured.throughput_rps - 1, self.p99_s / measured.p99_s - 1)


def workload_of(task: Task) -> Workload:
    """Inputs and outputs independent, each rounded up to whole tokens."""
    inputs, input_share = _rounded_normal(*task.inputs)
    outputs, output_share = _rounded_normal(*task.outputs)
    pairs = np.meshgrid(inputs, outputs, indexing="ij")
    weight = np.outer(input_share, output_share).ravel()
    return merge(task.name, "truncated normals", pairs[0].ravel(), pairs[1].ravel(), weight)


def _rounded_normal(mean: float, deviation: float, least: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(least, most + 1)
    below = np.array([statistics.NormalDist(mean, deviation).cdf(edge) for edge in range(least - 1, most + 1)])
    return values, np.diff(below) / (below[-1] - below[0])


def draw(workload: Workload, requests: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of a run's requests, int64 each. Each marginal covers its quantiles evenly, in random order: what is
    compared is the engine, not the luck of a draw.
    """
    rng = np.random.default_rng(seed)
    quantiles = (np.arange(requests) + 0.5) / requests
    drawn = []
    for lengths in (workload.input_tokens, workload.output_tokens):
        order = np.argsort(lengths, kind="stable")
        below = np.cumsum(workload.probability[order])
        values = lengths[order][np.minimum(np.searchsorted(below, quantiles), len(order) - 1)]
        drawn.append(rng.permutation(values))
    return drawn[0], drawn[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A task with everything that predictions need."""

    task: Task
    workload: Workload
    lengths: Lengths
    profile: Profile
    pipeline: Pipeline
    padding: Padding
    conditions: Conditions


def setting_of(task: Task, profile: Profile) -> Setting:
    spec = read_model_spec(task.directory())
    workload = workload_of(task)
    lengths = lengths_of(workload, spec.first_token)
    padding = Padding(workload.most_tokens, workload.most_input)
    unit = unit_costs(profile, spec, lengths, load_cluster("cpu"), 1, task.max_rows, padding)
    pipeline = Pipeline((PlacedStage(unit, spec.num_layers, True, True, None),))
    return Setting(task, workload, lengths, profile, pipeline, padding, Conditions(cache_tokens=workload.most_tokens))


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """A plan for one bound, and what the closed form says of it at the 99th percentile.

    Attributes:
      bound_s: of latency, at `PLANNED_PERCENTILE`.
      plan: as the planner made it.
      fixed: with B_E as it stands.
      closed: with the mean batch that holds the rounded decode batch, as the runner's correction does.
    """

    bound_s: float
    plan: Plan
    fixed: Figures
    closed: Figures


def choose(setting: Setting) -> list[Chosen]:
    """The planner's answers to a tight bound (a half above the least latency), a middle one, and none.

    Bounds hold at a higher percentile than is compared: N_D just long enough for 99% of the answers to end within one
    phase would leave it to the draw whether the p99 is one period or two.
    """
    try:
        ask(setting, 1e-9)
        raise RuntimeError("a plan within a nanosecond")
    except Infeasible as error:
        least_s = error.nearest_latency_s or math.nan
    free = ask(setting, None)
    assert free.prediction is not None, "a planned plan predicts"
    tight_s = 1.5 * least_s
    plans = [ask(setting, tight_s), ask(setting, math.sqrt(tight_s * free.prediction.latency_s)), free]
    return [_chosen(setting, plan) for plan in plans]


def ask(setting: Setting, bound_s: float | None) -> Plan:
    """The RRA plan with the highest throughput on this device."""
    profile, name = setting.profile, setting.task.name
    bounds = Bounds(latency_s=bound_s, latency_percentile=PLANNED_PERCENTILE)
    request = PlanRequest(
        read_model_spec(setting.task.directory()), name, load_cluster("cpu"), (profile,), setting.workload, bounds,
        policies=("rra",), margin=0.0, dtype=profile.dtype, cache_dtype=profile.cache_dtype,
    )  # fmt: skip
    return plan_schedule(request).plan


def _chosen(setting: Setting, plan: Plan) -> Chosen:
    schedule = plan.schedule
    assert plan.prediction is not None, "a planned plan predicts"
    assert plan.bounds is not None, "a planned plan has bounds"
    share = schedule.decode_batch / plan.prediction.decode_batch
    fixed = closed_form(setting, schedule, schedule.encode_batch)
    corrected = closed_form(setting, schedule, schedule.encode_batch * share)
    bound_s = math.inf if plan.bounds.latency_s is None else plan.bounds.latency_s
    return Chosen(bound_s, plan, fixed, corrected)


def closed_form(setting: Setting, schedule: Schedule, batch: float) -> Figures:
    """At a mean batch that is no whole number. Rows decode as before; the encode phase alone is another, and latency, a
    whole number of periods, follows the period.
    """
    points = evaluate_rra(
        setting.pipeline,
        setting.lengths,
        setting.conditions,
        np.array([schedule.encode_batch]),
        schedule.decode_iterations,
        padding=setting.padding,
    )
    encode_s = float(setting.pipeline.encode_s(np.array(batch)).sum())
    before_s = float(points.period_s[0])
    period_s = before_s - float(points.encode_s[0]) + encode_s
    return Figures(batch / period_s, float(points.latency_s[0]) * period_s / before_s)


def run(executor: LocalExecutor, plan: Plan, inputs: np.ndarray, outputs: np.ndarray, vocab: int) -> list[Finished]:
    """All requests at once through the Runner; the last event of each, in order of submission."""
    hidden = HiddenLengths(executor, lambda row: int(outputs[row.request]))
    ended: dict[int, Finished] = {}
    done = threading.Event()

    def hear(events: list[Event]) -> None:
        ended.update({int(event.id): event for event in events if isinstance(event, Finished)})
        if len(ended) == len(inputs):
            done.set()

    rng = np.random.default_rng(0)
    runner = Runner(plan, hidden, hear)
    room = plan.cache_tokens
    for number, tokens in enumerate(inputs):
        prompt = tuple(int(t) for t in rng.integers(4, vocab, size=int(tokens)))
        runner.submit(Request(str(number), prompt, Sampling(max_tokens=min(int(outputs.max()), room - len(prompt)))))
    with forbid_compilations():
        runner.start()
        done.wait()
    runner.stop()
    executor.reset()
    found = [ended[number] for number in range(len(inputs))]
    for number, event in enumerate(found):
        if event.completion_tokens != outputs[number]:
            raise RuntimeError(f"request {number}: {event.completion_tokens} tokens, expected {outputs[number]}")
    return found


def steady(found: list[Finished], outputs: np.ndarray, iterations: int) -> Figures:
    """Rate and p99 between filling and draining: the loop is full when the longest answer of the first phase must have
    gone, and drains after the last phase that admits.
    """
    begins = np.array([event.times.encode_start_s for event in found])
    ends = np.array([event.times.last_token_s for event in found])
    phases = np.unique(begins)
    longest = math.ceil((int(outputs.max()) - 1) / iterations)
    if len(phases) < longest + 3:
        raise ValueError(
            f"requests: {len(found)} are too few to fill the loop and drain it; give several times as many"
        )
    low_s, high_s = float(phases[longest]), float(phases[-1])
    inside = (begins >= low_s) & (begins < high_s)
    whole = inside & (begins <= phases[-1 - longest])
    if not whole.any():
        raise ValueError(
            f"requests: {len(found)} are too few to fill the loop and drain it; give several times as many"
        )
    p99_s = float(np.percentile((ends - begins)[whole], 99, method="inverted_cdf"))
    return Figures(float(inside.sum()) / (high_s - low_s), p99_s)


def compare(setting: Setting, runs: int, requests: int, seed: int) -> list[dict[str, object]]:
    """Runs every schedule `runs` times, in turns."""
    directory = setting.task.directory()
    spec = read_model_spec(directory)
    layout = StageSpec("both", (0, spec.num_layers), (0,), 1)
    stage: Stage = load_stage(directory, spec, layout, setting.profile.dtype)
    chosen = choose(setting)
    engines = []
    for one in chosen:
        engine = Engine(stage, one.plan)
        engine.warm_up()
        engines.append((one.plan, LocalExecutor(engine)))
        print(f"{setting.task.name}: bound {one.bound_s:.4g} s: {one.plan.schedule}", flush=True)
    measured: list[list[Figures]] = [[] for _ in chosen]
    simulated: list[list[Figures]] = [[] for _ in chosen]
    noisy = [0 for _ in chosen]
    for turn in range(-1, runs):  # the first warms up and does not count
        inputs, outputs = draw(setting.workload, requests, seed + max(turn, 0))
        for index, (plan, executor) in enumerate(engines):
            figures, quiet = _quiet_run(executor, plan, inputs, outputs, spec.vocab_size)
            if turn >= 0:
                measured[index].append(figures)
                simulated[index].append(events_figures(setting, plan, inputs, outputs))
                noisy[index] += not quiet
            print(f"{setting.task.name} run {turn} schedule {index}: {figures}{'' if quiet else ' noisy'}", flush=True)
    return [_report(one, measured[index], simulated[index], noisy[index]) for index, one in enumerate(chosen)]


def _quiet_run(
    executor: LocalExecutor, plan: Plan, inputs: np.ndarray, outputs: np.ndarray, vocab: int
) -> tuple[Figures, bool]:
    """A run between two control loops that agree, or the last of several that do not."""
    for _ in range(1 + REPEATS_OF_NOISY_RUNS):
        before_s = _control_s()
        found = run(executor, plan, inputs, outputs, vocab)
        moved = abs(_control_s() / before_s - 1)
        figures = steady(found, outputs, plan.schedule.decode_iterations)
        if moved <= CONTROL_TOLERANCE:
            return figures, True
    return figures, False


def events_figures(setting: Setting, plan: Plan, inputs: np.ndarray, outputs: np.ndarray) -> Figures:
    """The event simulation of the same run: these requests in order, the runner's correction, the plan's buckets."""
    spec = read_model_spec(setting.task.directory())
    costs = EngineCosts(setting.profile, spec, plan, int(outputs.max()) - 1)
    demand, room = Demand(inputs, outputs), Room(plan.schedule.max_rows)
    loop = PhaseLoop(plan.schedule, costs, demand, setting.conditions, room, spec.first_token, True, True, Timeline(1))
    outcome = loop.run()
    return Figures(outcome.throughput_rps, outcome.latency_s(setting.conditions))


def _control_s() -> float:
    return statistics.median(control_s() for _ in range(3))


def _report(chosen: Chosen, measured: list[Figures], simulated: list[Figures], noisy: int) -> dict[str, object]:
    """One schedule's figures: medians over runs, and each prediction's error as the median over runs."""

    def median(figures: list[Figures]) -> Figures:
        return Figures(
            statistics.median(f.throughput_rps for f in figures), statistics.median(f.p99_s for f in figures)
        )

    schedule = chosen.plan.schedule
    return {
        "latency_bound_s": None if math.isinf(chosen.bound_s) else chosen.bound_s,
        "encode_batch": schedule.encode_batch,
        "decode_iterations": schedule.decode_iterations,
        "decode_batch": schedule.decode_batch,
        "max_rows": schedule.max_rows,
        "measured": dataclasses.asdict(median(measured)),
        "closed_form": dataclasses.asdict(chosen.closed),
        "closed_form_fixed_batch": dataclasses.asdict(chosen.fixed),
        "events": dataclasses.asdict(median(simulated)),
        "closed_form_error": dataclasses.asdict(median([chosen.closed.error(one) for one in measured])),
        "events_error": dataclasses.asdict(
            median([found.error(one) for found, one in zip(simulated, measured, strict=True)])
        ),
        "runs": [dataclasses.asdict(one) for one in measured],
        "noisy_runs": noisy,
    }


def table(results: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# Predicted and measured",
        "",
        f"{results['cpu']}, jax {results['jax']}, {results['date']}, seed {results['seed']}: `{results['command']}`. "
        f"Medians over {results['runs']} runs; errors are predicted / measured - 1, their median over the runs. "
        f"Goals: throughput within {GOALS['throughput']:.0%}, p99 within {GOALS['p99']:.0%}.",
        "",
        "| model | bound s | B_E | N_D | B_D | rows | requests/s | closed form | events | p99 s | closed form | events "
        "| noisy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    models = results["models"]
    assert isinstance(models, dict)
    for name, model in models.items():
        for one in model["schedules"]:
            bound = "none" if one["latency_bound_s"] is None else f"{one['latency_bound_s']:.3g}"
            measured, closed, events = one["measured"], one["closed_form_error"], one["events_error"]
            lines.append(
                f"| {name} | {bound} | {one['encode_batch']} | {one['decode_iterations']} | {one['decode_batch']} "
                f"| {one['max_rows']} | {measured['throughput_rps']:.4g} | {closed['throughput_rps']:+.1%} "
                f"| {events['throughput_rps']:+.1%} | {measured['p99_s']:.4g} | {closed['p99_s']:+.1%} "
                f"| {events['p99_s']:+.1%} | {one['noisy_runs']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="results file (.json; a table goes beside it); printed if absent")
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--requests", type=int, default=0, help="in one run; each model's own number if absent")
    parser.add_argument("--time_budget_s", type=float, default=600.0, help="for each profile")
    parser.add_argument("--profiles", default="", help="directory that keeps the profiles; a temporary one if absent")
    parser.add_argument(
        "--reuse", action="store_true", help="take profiles that lie in --profiles instead of measuring"
    )
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    keep_on_disk(ROOT / ".cache" / "programs")
    results: dict[str, object] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "seed": flags.seed,
        "runs": flags.runs,
        "goals": GOALS,
    }
    models: dict[str, object] = {}
    results["models"] = models
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(flags.profiles or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in flags.models.split(","):
            task = TASKS[name]
            profile = profiled(task, folder, flags.time_budget_s, flags.reuse)
            setting = setting_of(task, profile)
            models[name] = {
                "profile": {"source": profile.source, "spread": profile.spread, "phase_s": profile.phase_s},
                "requests": flags.requests or task.requests,
                "load_average": os.getloadavg(),
                "schedules": compare(setting, flags.runs, flags.requests or task.requests, flags.seed),
            }
            print(table(results), flush=True)
            if flags.output:
                output = pathlib.Path(flags.output)
                output.write_text(json.dumps(results, indent=1) + "\n")
                output.with_suffix(".md").write_text(table(results))


def profiled(task: Task, folder: pathlib.Path, budget_s: float, reuse: bool) -> Profile:
    """Measures now, unless an older profile will do: the machine's speed today is what counts."""
    if reuse and (folder / f"{task.name}.json").exists():
        return read_profile(folder / f"{task.name}.json")
    workload = workload_of(task)
    limits = Limits(task.max_rows, workload.most_tokens, workload.most_input)
    partial = folder / f"{task.name}.samples.jsonl"
    wishes = Wishes(limits, time_budget_s=budget_s)
    found = profile_model(task.directory(), wishes, partial)
    partial.unlink()
    write_profile(found.profile, folder / f"{task.name}.json")
    print(f"{task.name}: {found.points_measured} of {found.points} points in {found.seconds:.0f} s", flush=True)
    return found.profile


if __name__ == "__main__":
    main()
