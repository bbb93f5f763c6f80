"""The demo's client side: has the model profiled, plans, loads each plan over gRPC, and shows what happens."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from exegpt_jax.testing import numbers_task as task
from serving.cores import split_cores
from serving.demo import report
from serving.demo.lengths import MIN_DIGITS
from serving.demo.measuring import Wanted, correct, is_stale, kept_at, make_profile, needs_correction
from serving.demo.page import write_page
from serving.demo.planning import Folder, Planned, make_plans
from serving.demo.process import Worker
from serving.demo.stand import Stand
from serving.load import LoadResult
from solver.plan.plan import Plan
from solver.report import words

_SAMPLES = 3


def run_demo(
    directory: Path,
    *,
    requests: int,
    max_rows: int,
    bound_s: float | None,
    profile: Path | None,
    profile_s: float,
    measure: bool,
    baselines: Sequence[str],
    seed: int,
    folder: Path,
    picture: Path | None,
) -> None:
    """Runs the whole demo; the last line it prints is for machines.

    Args:
      directory: the model's.
      requests: how many to send under each plan.
      max_rows: rows of the cache, for every plan.
      bound_s: on latency, from the start of a request's encode phase; None: one that suits the machine.
      profile: to take instead of measuring one.
      profile_s: after which no further point is measured.
      measure: even where an earlier demo has.
      baselines: that the plan is held against.
      seed: chooses the numbers.
      folder: for profile, workload, plans and the report.
      picture: where to write what was printed as SVG.

    Raises:
      ValueError: one line: what failed, or that too few answers are right.
    """
    started_s = time.monotonic()
    console = Console(highlight=False, record=picture is not None)
    rng = random.Random(seed)
    numbers = tuple(task.draw(rng, MIN_DIGITS, task.MAX_DIGITS, unseen=True) for _ in range(requests))
    directory, folder = _short(directory), _short(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = Folder(folder)
    console.print(f"[bold]1. The profiler[/] measures the model in {directory} on this machine.")

    def say(line: str) -> None:
        console.print(f"   {line}", style="dim", markup=False)

    wanted, cores = Wanted(files.profile, profile, max_rows, profile_s, measure), split_cores()
    fresh = needs_correction(directory, wanted, cores)
    say(make_profile(directory, wanted, cores, say))
    console.print("[bold]2. The planner[/] finds the schedule with the highest throughput under a latency bound.")
    planned = make_plans(directory, files, max_rows, bound_s, baselines)
    outcomes = []
    with Worker(say) as worker, asyncio.Runner() as loop:
        stand = Stand(worker, loop, directory, 2 * max_rows)
        if fresh:
            say(correct(directory, wanted, cores, stand.try_out(files.plan("rra"), files.profile)))
            planned = make_plans(directory, files, max_rows, bound_s, baselines)
        _print_plan(console, planned)
        for step, (policy, plan) in enumerate(planned.plans.items(), start=3):
            console.print(f"[bold]{step}. {report.NAMES[policy]}[/] serves: {report.settings(plan)}.")
            outcomes.append(_load(console, stand, files, policy, plan, numbers))
    if profile is None and is_stale(outcomes[0].figures):
        kept_at(directory, cores, max_rows).unlink(missing_ok=True)
        say("the profile does not fit what ran: the next demo measures again")
    _conclude(console, files, planned, outcomes)
    if picture is not None:
        console.save_svg(str(picture), title="make demo")
    fields = report.machine_line(outcomes, planned.bound_s, time.monotonic() - started_s)
    print("DEMO " + json.dumps(fields), flush=True)
    complaint = report.complaint(outcomes)
    if complaint is not None:
        raise ValueError(complaint)


def _conclude(console: Console, files: Folder, planned: Planned, outcomes: Sequence[Outcome]) -> None:
    """The results in a table, in words and as a page."""
    console.print(report.result_table(outcomes, planned.bound_s))
    for line in report.conclusions(outcomes, planned.bound_s):
        console.print(line)
    write_page(files.report, planned, outcomes)
    console.print(
        f"The report lies in {files.report}, the plan in {files.plan('rra')} (exegpt explain says more of it)."
    )


def _print_plan(console: Console, planned: Planned) -> None:
    """The command, and the plan in the words of `exegpt explain`."""
    console.print(f"   {planned.command}", style="dim", markup=False)
    for line in words.summary(planned.plans["rra"]):
        console.print(f"   {line}", markup=False)


def _load(
    console: Console, stand: Stand, files: Folder, policy: str, plan: Plan, numbers: tuple[int, ...]
) -> report.Outcome:
    """One plan under the whole load, with a live display."""
    # Baselines are set by hand, not planned from a profile.
    address = stand.begin(files.plan(policy), files.profile if policy == "rra" else None)
    console.print(f"   {len(numbers)} numbers to put into words, {stand.in_flight} at a time, over gRPC at {address}")
    with Progress(
        TextColumn("  "),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as progress:
        results = stand.send(numbers, _live_display(progress, numbers))
    outcome = report.Outcome(policy, plan, numbers, tuple(results), stand.end())
    _print_samples(console, outcome)
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


def _print_samples(console: Console, outcome: report.Outcome) -> None:
    """The first answers of the first plan, and the first wrong ones of each."""
    pairs = list(zip(outcome.numbers, outcome.results, strict=True))
    wrong = [pair for pair in pairs if not report.is_right(*pair)][:_SAMPLES]
    right = [pair for pair in pairs if report.is_right(*pair)][:_SAMPLES] if outcome.policy == "rra" else []
    for number, result in [*right, *wrong]:
        verdict = "right" if report.is_right(number, result) else "WRONG"
        console.print(f"   {verdict}: {task.prompt(number)} {result.error or result.text}", markup=False)


def _short(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
