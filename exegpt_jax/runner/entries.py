"""What a phase's parts leave in the Timeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exegpt_jax.engine.api import DecodeCall, EncodeCall, StageWork
from exegpt_jax.runner.delivery import Outcome
from solver.plan.timeline import Kind, TimelineEntry


def encode_entry(
    phase: int, calls: Sequence[EncodeCall], dispatched_s: float, ready_s: float, stage: int = 0
) -> TimelineEntry:
    """An encode part on a stage, which is an index in the plan."""
    return TimelineEntry(
        phase=phase,
        kind="encode",
        stage=stage,
        dispatched_s=dispatched_s,
        ready_s=ready_s,
        rows=sum(len(call.rows) for call in calls),
        tokens=sum(len(row.token_ids) for call in calls for row in call.rows),
        rows_bucket=max(call.rows_bucket for call in calls),
        tokens_bucket=max(call.tokens_bucket for call in calls),
        calls=tuple((call.rows_bucket, call.tokens_bucket) for call in calls),
    )


def decode_entry(
    phase: int, call: DecodeCall, outcome: Outcome, dispatched_s: float, ready_s: float, stage: int = 0
) -> TimelineEntry:
    """A decode part on a stage."""
    return TimelineEntry(
        phase=phase,
        kind="decode",
        stage=stage,
        dispatched_s=dispatched_s,
        ready_s=ready_s,
        rows=outcome.rows,
        tokens=outcome.tokens,
        iterations=outcome.iterations,
        rows_bucket=call.rows_bucket,
        tokens_bucket=call.cache_bucket,
    )


def stage_entries(phase: int, kind: Kind, work: Iterable[StageWork]) -> list[TimelineEntry]:
    """A part on several stages, or in several micro-batches: what each did, in the executor's own times."""
    return [
        TimelineEntry(
            phase=phase,
            kind=kind,
            stage=each.stage,
            dispatched_s=each.dispatched_s,
            ready_s=each.ready_s,
            rows=each.rows,
            tokens=each.tokens,
            iterations=1 if kind == "decode" else 0,
            rows_bucket=each.rows_bucket,
            tokens_bucket=each.tokens_bucket,
            calls=((each.rows_bucket, each.tokens_bucket),) if kind == "encode" else (),
            micro_batch=each.micro_batch,
            iteration=each.iteration,
            tensor=each.tensor,
        )
        for each in work
    ]
