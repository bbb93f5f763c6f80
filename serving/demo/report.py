"""What the demo shows at the end: answers checked by arithmetic, a table of both schedules, a line for machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.table import Table

from exegpt_jax.testing import numbers_task as task
from serving.demo.messages import Trial
from serving.load import LoadResult, LoadSummary, summarise

NEEDED_SHARE = 0.98
NAMES = {"rra": "RRA (ExeGPT)", "static": "static batching"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One schedule under the load.

    Attributes:
      trial: the settings that served.
      numbers: what was asked, in order.
      results: what came back, in the same order.
    """

    trial: Trial
    numbers: tuple[int, ...]
    results: tuple[LoadResult, ...]

    @property
    def correct(self) -> int:
        return sum(is_right(n, result) for n, result in zip(self.numbers, self.results, strict=True))

    @property
    def summary(self) -> LoadSummary:
        return summarise(self.results)


def is_right(number: int, result: LoadResult) -> bool:
    """The exact words, ended by the model itself."""
    return result.error is None and result.finish_reason == "stop" and result.text == task.words(number)


def settings(trial: Trial) -> str:
    if trial.policy == "static":
        return f"batches of {trial.encode_batch}, decode {trial.decode_iterations}"
    return f"encode {trial.encode_batch}, decode {trial.decode_iterations}"


def sweep_table(trials: Sequence[Trial], chosen: Sequence[Trial]) -> Table:
    table = Table(title="Measured on this machine, without the wire", title_justify="left")
    table.add_column("schedule")
    table.add_column("setting")
    table.add_column("requests/s", justify="right")
    table.add_column("")
    for trial in trials:
        mark = "chosen" if trial in chosen else ""
        table.add_row(NAMES[trial.policy], settings(trial), f"{trial.requests_per_s:.0f}", mark)
    return table


def result_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="The same load, the same engine, the same memory, over gRPC", title_justify="left")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(NAMES[outcome.trial.policy], justify="right")
    sums = [outcome.summary for outcome in outcomes]
    table.add_row("requests", *(str(s.requests) for s in sums))
    table.add_row("right answers", *(f"{o.correct} ({o.correct / len(o.numbers):.1%})" for o in outcomes))
    table.add_row("throughput", *(f"{s.requests_per_s:.0f} requests/s" for s in sums), style="bold")
    table.add_row("", *(f"{s.tokens_per_s:.0f} tokens/s" for s in sums))
    table.add_row("time to first token, p50", *(_ms(s.time_to_first_token_p50_s) for s in sums))
    table.add_row("time to first token, p99", *(_ms(s.time_to_first_token_p99_s) for s in sums))
    table.add_row("latency with wait, p50", *(_ms(s.latency_p50_s) for s in sums))
    table.add_row("latency with wait, p99", *(_ms(s.latency_p99_s) for s in sums))
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def machine_line(outcomes: Sequence[Outcome], took_s: float) -> dict[str, object]:
    """The fields of the last line; `p99_s` is RRA's latency with wait."""
    rra, static = outcomes
    fields: dict[str, object] = {
        "requests": len(rra.numbers),
        "correct": rra.correct,
        "rra_requests_per_s": round(rra.summary.requests_per_s, 1),
        "static_requests_per_s": round(static.summary.requests_per_s, 1),
        "p99_s": round(rra.summary.latency_p99_s, 4),
        "static_requests": len(static.numbers),
        "static_correct": static.correct,
    }
    for outcome in outcomes:
        name, summary = outcome.trial.policy, outcome.summary
        fields[f"{name}_encode_batch"] = outcome.trial.encode_batch
        fields[f"{name}_decode_iterations"] = outcome.trial.decode_iterations
        fields[f"{name}_tokens_per_s"] = round(summary.tokens_per_s, 1)
        fields[f"{name}_time_to_first_token_p50_s"] = round(summary.time_to_first_token_p50_s, 4)
        fields[f"{name}_time_to_first_token_p99_s"] = round(summary.time_to_first_token_p99_s, 4)
        fields[f"{name}_p50_s"] = round(summary.latency_p50_s, 4)
        fields[f"{name}_p99_s"] = round(summary.latency_p99_s, 4)
    return {**fields, "seconds": round(took_s, 1)}


def complaint(outcomes: Sequence[Outcome]) -> str | None:
    """Why the demo failed, in one line; None if it did not."""
    for outcome in outcomes:
        name, total = NAMES[outcome.trial.policy], len(outcome.numbers)
        errors = [result.error for result in outcome.results if result.error is not None]
        if errors:
            return f"{name}: {len(errors)} of {total} requests failed, the first with {errors[0]}"
        if outcome.correct < NEEDED_SHARE * total:
            pairs = zip(outcome.numbers, outcome.results, strict=True)
            number, wrong = next((n, r) for n, r in pairs if not is_right(n, r))
            return (
                f"{name}: {outcome.correct} of {total} answers are right, {NEEDED_SHARE:.0%} are needed; "
                f"the model at --model said {wrong.text!r} to {task.prompt(number)!r}"
            )
    return None
