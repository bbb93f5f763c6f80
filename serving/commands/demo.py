"""The whole house in a minute: serves the embedded model over gRPC under two schedules, and checks every answer.

The model writes numbers in words; the demo asks for numbers that training never saw, so a right answer was worked out,
not remembered. A server process loads the model, measures a few settings of each schedule, and serves RRA, then static
batching on the same engine; this process is the client. Exit status 1 if anything fails or fewer than 98% are right.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from exegpt_jax.testing import numbers_task as task
from serving import flags as shared
from serving.demo import report
from serving.demo.messages import Message, Trial
from serving.demo.process import Worker
from serving.demo.tuning import MAX_TOKENS, MIN_DIGITS
from serving.load import LoadRequest, LoadResult, run_load

_EMBEDDED = Path(__file__).resolve().parents[2] / "configs" / "demo" / "numbers"
_POLICIES = ("rra", "static")
_SAMPLES = 3
_TIMEOUT_S = 60.0

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
FLAGS.set_default("model", str(_EMBEDDED))
flags.DEFINE_integer("requests", 1200, "requests to send under each schedule", 1, flag_values=FLAGS)
flags.DEFINE_integer("max_rows", 24, "rows of the key/value cache, for both schedules", 4, flag_values=FLAGS)
flags.DEFINE_string("picture", None, "also write what is printed as an SVG picture", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "which numbers are asked", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    started_s = time.monotonic()
    console = Console(highlight=False, record=FLAGS.picture is not None)
    directory = shared.model_directory(FLAGS)
    rng = random.Random(FLAGS.seed)
    numbers = tuple(task.draw(rng, MIN_DIGITS, task.MAX_DIGITS, unseen=True) for _ in range(FLAGS.requests))

    console.print(f"[bold]1. A server process loads the model[/] from {_short(directory)}, compiles and measures it.")
    with Worker(
        directory, FLAGS.max_rows, lambda line: console.print(f"   {line}", style="dim", markup=False)
    ) as worker:
        tuned = worker.wait_for("tuned")
        console.print(report.sweep_table(tuned.trials, tuned.chosen))
        outcomes = [
            _load(console, worker, tuned, policy, numbers, step) for step, policy in enumerate(_POLICIES, start=2)
        ]
    console.print(report.result_table(outcomes))
    gain = outcomes[0].summary.requests_per_s / max(outcomes[1].summary.requests_per_s, 1e-9)
    console.print(f"RRA answers {gain:.2f} times as many requests per second as static batching.")
    if FLAGS.picture is not None:
        console.save_svg(FLAGS.picture, title="make demo")
    print("DEMO " + json.dumps(report.machine_line(outcomes, time.monotonic() - started_s)), flush=True)
    complaint = report.complaint(outcomes)
    if complaint is not None:
        raise ValueError(complaint)
    return 0


def _load(
    console: Console, worker: Worker, tuned: Message, policy: str, numbers: tuple[int, ...], step: int
) -> report.Outcome:
    """One schedule under the whole load, with a live display."""
    trial = next(trial for trial in tuned.chosen if trial.policy == policy)
    address = worker.serve(policy)
    in_flight = 2 * FLAGS.max_rows
    console.print(
        f"[bold]{step}. {report.NAMES[policy]}[/] ({report.settings(trial)}) at {address}: this process asks for "
        f"{len(numbers)} numbers in words, {in_flight} at a time."
    )
    requests = [LoadRequest(task.prompt(number), {"max_tokens": MAX_TOKENS}) for number in numbers]
    with Progress(
        TextColumn("  "),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as progress:
        show = _live_display(progress, numbers)
        results = run_load(address, requests, concurrency=in_flight, timeout_s=_TIMEOUT_S, on_result=show)
    outcome = report.Outcome(trial, numbers, tuple(results))
    _print_samples(console, outcome, trial)
    return outcome


def _live_display(progress: Progress, numbers: tuple[int, ...]) -> Callable[[LoadResult], None]:
    bar = progress.add_task("", total=len(numbers), note="")
    right = done = 0

    def show(result: LoadResult) -> None:
        nonlocal right, done
        done += 1
        right += report.is_right(numbers[result.index], result)
        progress.update(bar, completed=done, note=f"{right} right, {done - right} wrong")

    return show


def _print_samples(console: Console, outcome: report.Outcome, trial: Trial) -> None:
    """The first answers, and the first wrong ones."""
    pairs = list(zip(outcome.numbers, outcome.results, strict=True))
    wrong = [pair for pair in pairs if not report.is_right(*pair)][:_SAMPLES]
    right = [pair for pair in pairs if report.is_right(*pair)][:_SAMPLES] if trial.policy == _POLICIES[0] else []
    for number, result in [*right, *wrong]:
        verdict = "right" if report.is_right(number, result) else "WRONG"
        console.print(f"   {verdict}: {task.prompt(number)} {result.error or result.text}", markup=False)


def _short(directory: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(directory.relative_to(here)) if directory.is_relative_to(here) else str(directory)
