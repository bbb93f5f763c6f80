"""The demo's client side: has the model profiled, plans, loads each plan over gRPC, and shows what happens."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from exegpt_jax.testing import numbers_task as task
from serving.demo import report
from serving.cores import kept_to, split_cores
from serving.demo.lengths import MAX_TOKENS, MIN_DIGITS
from serving.demo.page import write_page
from serving.demo.planning import Folder, Planned, make_plans
from serving.demo.process import Worker
from serving.load import LoadRequest, LoadResult, run_load
from solver.report import words

_SAMPLES = 3
_TIMEOUT_S = 60.0


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
    console.print(f"[bold]1. A server process loads the model[/] in {directory} and profiles it.")
    with Worker(directory, lambda line: console.print(f"   {line}", style="dim", markup=False)) as worker:
        console.print(f"   {worker.profile(files.profile, profile, max_rows, profile_s, anew=measure)}")
        console.print("[bold]2. The planner[/] finds the schedule with the highest throughput under a latency bound.")
        planned = make_plans(directory, files, max_rows, bound_s, baselines)
        _print_plan(console, planned)
        outcomes = []
        for step, policy in enumerate(planned.plans, start=3):
            name = report.NAMES[policy]
            console.print(f"[bold]{step}. {name}[/] serves: {report.settings(planned.plans[policy])}.")
            outcomes.append(_load(console, worker, planned, policy, files, numbers, in_flight=2 * max_rows))
    console.print(report.result_table(outcomes, planned.bound_s))
    for line in report.conclusions(outcomes, planned.bound_s):
        console.print(line)
    write_page(files.report, planned, outcomes)
    console.print(
        f"The report lies in {files.report}, the plan in {files.plan('rra')} (exegpt explain says more of it)."
    )
    if picture is not None:
        console.save_svg(str(picture), title="make demo")
    fields = report.machine_line(outcomes, planned.bound_s, time.monotonic() - started_s)
    print("DEMO " + json.dumps(fields), flush=True)
    complaint = report.complaint(outcomes)
    if complaint is not None:
        raise ValueError(complaint)


def _print_plan(console: Console, planned: Planned) -> None:
    """The command, and the plan in the words of `exegpt explain`."""
    console.print(f"   {planned.command}", style="dim", markup=False)
    for line in words.summary(planned.plans["rra"]):
        console.print(f"   {line}", markup=False)


def _load(
    console: Console,
    worker: Worker,
    planned: Planned,
    policy: str,
    files: Folder,
    numbers: tuple[int, ...],
    in_flight: int,
) -> report.Outcome:
    """One plan under the whole load, with a live display."""
    path = files.plan(policy)
    address = worker.serve(path)
    console.print(f"   {len(numbers)} numbers to put into words, {in_flight} at a time, over gRPC at {address}")
    with kept_to(split_cores().wire):
        # One wave that is not counted: no plan shall pay for a cold wire.
        cold = range(10**8, 10**8 + in_flight)
        once = [_request(number) for number in cold]
        run_load(address, once, concurrency=in_flight, timeout_s=_TIMEOUT_S, one_call=True)
        address = worker.serve(path)
        with Progress(
            TextColumn("  "),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        ) as progress:
            show = _live_display(progress, numbers)
            asked = [_request(number) for number in numbers]
            results = run_load(
                address, asked, concurrency=in_flight, timeout_s=_TIMEOUT_S, one_call=True, on_result=show
            )
    outcome = report.Outcome(policy, planned.plans[policy], numbers, tuple(results), worker.stop())
    _print_samples(console, outcome)
    return outcome


def _request(number: int) -> LoadRequest:
    return LoadRequest(task.prompt(number), {"max_tokens": MAX_TOKENS})


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
