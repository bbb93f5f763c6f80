"""What the demo shows at the end: answers checked by arithmetic, a table of all plans, a line for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rich.table import Table

from exegpt_jax.testing import numbers_task as task
from serving.demo.messages import Figures
from serving.load import LoadResult, LoadSummary, summarise
from solver.plan.plan import Plan
from solver.report import words

NEEDED_SHARE = 0.98
NAMES = {
    "rra": "RRA (ExeGPT)",
    "static": "static batching",
    "iteration": "iteration-level",
    "chunked": "chunked prefill",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One plan under the load.

    Attributes:
      policy: of the plan.
      plan: that served.
      numbers: what was asked, in order.
      results: what came back, in the same order.
      figures: what the server measured.
    """

    policy: str
    plan: Plan
    numbers: tuple[int, ...]
    results: tuple[LoadResult, ...]
    figures: Figures

    @property
    def correct(self) -> int:
        return sum(is_right(n, result) for n, result in zip(self.numbers, self.results, strict=True))

    @property
    def summary(self) -> LoadSummary:
        return summarise(self.results)


def is_right(number: int, result: LoadResult) -> bool:
    """The exact words, ended by the model itself."""
    return result.error is None and result.finish_reason == "stop" and result.text == task.words(number)


def settings(plan: Plan) -> str:
    schedule = plan.schedule
    if schedule.policy == "static":
        return f"batches of {schedule.encode_batch}, decode {schedule.decode_iterations}"
    if schedule.policy == "iteration":
        return f"up to {schedule.max_rows} rows, refilled before every iteration"
    if schedule.policy == "chunked":
        return f"up to {schedule.max_rows} rows, {schedule.token_budget} tokens an iteration"
    return words.controls(schedule)


def result_table(outcomes: Sequence[Outcome], bound_s: float) -> Table:
    table = Table(title="The same load, the same model, the same memory, over gRPC", title_justify="left")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.policy.upper() if outcome.policy == "rra" else outcome.policy, justify="right")
    sums = [outcome.summary for outcome in outcomes]
    table.add_row("right answers", *(f"{o.correct / len(o.numbers):.1%}" for o in outcomes))
    table.add_row("requests/s", *(f"{s.requests_per_s:.0f}" for s in sums), style="bold")
    table.add_row("tokens/s", *(f"{s.tokens_per_s:.0f}" for s in sums))
    table.add_row("p99 latency", *(_ms(o.figures.latency_s) for o in outcomes), style="bold")
    table.add_row(f"bound of {_ms(bound_s)}", *(_kept(o.figures.latency_s, bound_s) for o in outcomes))
    table.add_row("p50 with wait", *(_ms(s.latency_p50_s) for s in sums))
    table.add_row("p99 with wait", *(_ms(s.latency_p99_s) for s in sums))
    table.add_row("p99 first token with wait", *(_ms(s.time_to_first_token_p99_s) for s in sums))
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _kept(latency_s: float, bound_s: float) -> str:
    return "kept" if latency_s <= bound_s else "MISSED"


def conclusions(outcomes: Sequence[Outcome], bound_s: float) -> list[str]:
    """Predicted beside measured, the bound, and the gain over each baseline."""
    rra, *others = outcomes
    kept = "is kept" if rra.figures.latency_s <= bound_s else "is MISSED"
    gains = [
        f"{gain(rra, other):.2f} times {NAMES[other.policy]}"
        + ("" if other.figures.latency_s <= bound_s else " (which misses the bound)")
        for other in others
    ]
    return [
        *(f"{NAMES['rra']}: {line}" for line in rra.figures.lines),
        f"The bound of {_ms(bound_s)} {kept}: p99 is {_ms(rra.figures.latency_s)}.",
        *([f"Requests per second: {', '.join(gains)}."] if gains else []),
    ]


def gain(outcome: Outcome, other: Outcome) -> float:
    """Throughput over another's."""
    return outcome.summary.requests_per_s / max(other.summary.requests_per_s, 1e-9)


def machine_line(outcomes: Sequence[Outcome], bound_s: float, took_s: float) -> dict[str, object]:
    """The fields of the last line. `p99_s` is RRA's latency with wait; the bound is on latency from the start of the
    encode phase, `rra_latency_p99_s`. Throughputs are what the client saw; predicted and measured ones the engine's.
    """
    rra = outcomes[0]
    fields: dict[str, object] = {
        "requests": len(rra.numbers),
        "correct": rra.correct,
        "rra_requests_per_s": round(rra.summary.requests_per_s, 1),
        "p99_s": round(rra.summary.latency_p99_s, 4),
        "bound_s": bound_s,
        "bound_kept": rra.figures.latency_s <= bound_s,
    }
    names = {
        "predicted_requests_per_s": "predicted_requests_per_s",
        "measured_requests_per_s": "measured_requests_per_s",
        "requests_per_s_error": "requests_per_s_error",
        "predicted_latency_s": "predicted_p99_s",
        "measured_latency_s": "measured_p99_s",
        "latency_s_error": "p99_s_error",
        "phase_error": "phase_error",
        "phases_error": "phases_error",
    }
    fields |= {name: rra.figures.fields[own] for own, name in names.items()}
    for outcome in outcomes:
        name, summary, schedule = outcome.policy, outcome.summary, outcome.plan.schedule
        fields[f"{name}_requests_per_s"] = round(summary.requests_per_s, 1)
        fields[f"{name}_requests"] = len(outcome.numbers)
        fields[f"{name}_correct"] = outcome.correct
        fields[f"{name}_latency_p99_s"] = _number(outcome.figures.latency_s)
        fields[f"{name}_p50_s"] = _number(summary.latency_p50_s)
        fields[f"{name}_p99_s"] = _number(summary.latency_p99_s)
        fields[f"{name}_tokens_per_s"] = round(summary.tokens_per_s, 1)
        fields[f"{name}_time_to_first_token_p50_s"] = _number(summary.time_to_first_token_p50_s)
        fields[f"{name}_time_to_first_token_p99_s"] = _number(summary.time_to_first_token_p99_s)
        fields[f"{name}_encode_batch"] = schedule.encode_batch
        fields[f"{name}_decode_iterations"] = schedule.decode_iterations
        if outcome is not rra:
            fields[f"gain_over_{name}"] = round(gain(rra, outcome), 3)
    return {**fields, "seconds": round(took_s, 1)}


def _number(seconds: float) -> float | None:
    return round(seconds, 4) if math.isfinite(seconds) else None


def complaint(outcomes: Sequence[Outcome]) -> str | None:
    """Why the demo failed, in one line; None if it did not."""
    for outcome in outcomes:
        name, total = NAMES[outcome.policy], len(outcome.numbers)
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
