"""The results of a load that ran in this process, in a few numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from serving.load.results import LoadResult


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of them do not exceed (nearest rank); NaN of nothing."""
    ranked = sorted(value for value in values if not math.isnan(value))
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


@dataclasses.dataclass(frozen=True)
class LoadSummary:
    """A load in numbers; times in seconds, of requests that were answered."""

    requests: int
    errors: int
    seconds: float
    tokens: int
    requests_per_s: float
    tokens_per_s: float
    time_to_first_token_p50_s: float
    time_to_first_token_p99_s: float
    latency_p50_s: float
    latency_p99_s: float


def summarise(results: Sequence[LoadResult]) -> LoadSummary:
    """From the first planned request to the last token."""
    answered = [result for result in results if result.error is None]
    begin_s = min((result.planned_s for result in results), default=0.0)
    seconds = max((result.last_token_s for result in answered), default=begin_s) - begin_s
    tokens = sum(len(result.token_ids) for result in answered)
    first = [result.time_to_first_token_s for result in answered]
    whole = [result.latency_with_wait_s for result in answered]
    return LoadSummary(
        requests=len(results),
        errors=len(results) - len(answered),
        seconds=seconds,
        tokens=tokens,
        requests_per_s=len(answered) / seconds if seconds > 0 else 0.0,
        tokens_per_s=tokens / seconds if seconds > 0 else 0.0,
        time_to_first_token_p50_s=percentile(first, 50),
        time_to_first_token_p99_s=percentile(first, 99),
        latency_p50_s=percentile(whole, 50),
        latency_p99_s=percentile(whole, 99),
    )
