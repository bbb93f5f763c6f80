"""The demo's client side: drives the worker through both schedules, loads it over gRPC, and shows what happens."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from exegpt_jax.testing import numbers_task as task
from serving.demo import report
from serving.demo.messages import Trial
from serving.demo.process import Worker
from serving.demo.tuning import MAX_TOKENS, MIN_DIGITS
from serving.load import LoadRequest, LoadResult, run_load

_POLICIES = ("rra", "static")
_SAMPLES = 3
_TIMEOUT_S = 60.0


def run_demo(directory: Path, *, requests: int, max_rows: int, seed: int, picture: Path | None) -> None:
    """Runs the whole demo; the last line it prints is for machines.

    Args:
      directory: the model's.
      requests: how many to send under each schedule.
      max_rows: rows of the cache, for both schedules.
      seed: chooses the numbers.
      picture: where to write what was printed as SVG.

    Raises:
      ValueError: one line: what failed, or that too few answers are right.
    """
    started_s = time.monotonic()
    console = Console(highlight=False, record=picture is not None)
    rng = random.Random(seed)
    numbers = tuple(task.draw(rng, MIN_DIGITS, task.MAX_DIGITS, unseen=True) for _ in range(requests))
    directory = _short(directory)
    console.print(f"[bold]1. A server process loads the model[/] in {directory}, compiles and measures it.")
    with Worker(directory, max_rows, lambda line: console.print(f"   {line}", style="dim", markup=False)) as worker:
        tuned = worker.wait_for("tuned")
        console.print(report.sweep_table(tuned.trials, tuned.chosen))
        outcomes = []
        for step, policy in enumerate(_POLICIES, start=2):
            trial = next(trial for trial in tuned.chosen if trial.policy == policy)
            console.print(f"[bold]{step}. {report.NAMES[policy]}[/] serves: {report.settings(trial)}.")
            outcomes.append(_load(console, worker, trial, numbers, in_flight=2 * max_rows))
    console.print(report.result_table(outcomes))
    gain = outcomes[0].summary.requests_per_s / max(outcomes[1].summary.requests_per_s, 1e-9)
    console.print(f"RRA answers {gain:.2f} times as many requests per second as static batching.")
    if picture is not None:
        console.save_svg(str(picture), title="make demo")
    print("DEMO " + json.dumps(report.machine_line(outcomes, time.monotonic() - started_s)), flush=True)
    complaint = report.complaint(outcomes)
    if complaint is not None:
        raise ValueError(complaint)


def _load(console: Console, worker: Worker, trial: Trial, numbers: tuple[int, ...], in_flight: int) -> report.Outcome:
    """One schedule under the whole load, with a live display."""
    address = worker.serve(trial.policy)
    console.print(f"   {len(numbers)} numbers to put into words, {in_flight} at a time, over gRPC at {address}")
    # One wave that is not counted: neither schedule shall pay for a cold wire.
    warm_up = [
        LoadRequest(task.prompt(number), {"max_tokens": MAX_TOKENS}) for number in range(10**8, 10**8 + in_flight)
    ]
    run_load(address, warm_up, concurrency=in_flight, timeout_s=_TIMEOUT_S)
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


def _short(directory: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory
