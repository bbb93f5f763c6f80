"""What a load shows: spreads of times over all requests, goodput under bounds, errors, and who the limit was."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from serving.load.fleet import Outcome
from serving.load.messages import Sample
from solver.plan.bounds import Bounds

PERCENTS = (50, 90, 95, 99)
MOST_LAG_S = 0.01
MOST_CPU_SHARE = 0.85


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of one figure over all requests that have it; percentiles by nearest rank, NaN of nothing."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Requests that kept every bound, of all that were sent; a failed one kept none."""

    requests: int
    share: float
    requests_per_s: float


@dataclasses.dataclass(frozen=True)
class ClientFigures:
    """Whether the client was in time.

    Attributes:
      send_lag_s: from a request's planned to its real sending (open loop).
      loop_lag_s: how late the processes' loops came back from sleeping.
      cpu_shares: of each process; NaN of one that told nothing.
      warning: one line where the client was late or busy, so that its own slowness is in the figures; else None.
    """

    send_lag_s: Spread
    loop_lag_s: Spread
    cpu_shares: tuple[float, ...]
    warning: str | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """A load in numbers, times in seconds.

    Attributes:
      requests: that ended, one way or the other; `unfinished` were under way or not sent when the load broke off.
      errors: how many by status; `examples` has the first text of each.
      seconds: from the first request's time to the last token.
      sent_per_s: requests per second of the time in which they were sent.
      ttft_s, latency_s: from the start of encode, the server's word; the other two from arrival, as the client saw it.
      tpot_s: (last - first) / (tokens - 1) of each answer.
      inter_message_s: between the messages of an answer that bring tokens: vLLM's inter-token latency.
      tokens_per_message: mean.
    """

    requests: int
    answered: int
    unfinished: int
    errors: dict[str, int]
    examples: dict[str, str]
    seconds: float
    prompt_tokens: int
    tokens: int
    sent_per_s: float
    requests_per_s: float
    tokens_per_s: float
    ttft_with_wait_s: Spread
    ttft_s: Spread
    tpot_s: Spread
    inter_message_s: Spread
    tokens_per_message: float
    latency_with_wait_s: Spread
    latency_s: Spread
    goodput: Goodput | None
    client: ClientFigures


def spread(values: Iterable[float]) -> Spread:
    """Of all that are numbers."""
    given = np.fromiter(values, np.float64)
    ranked = np.sort(given[~np.isnan(given)])
    count = len(ranked)
    if not count:
        return Spread(0, *[math.nan] * 6)
    p50, p90, p95, p99 = (float(ranked[max(0, math.ceil(count * percent / 100) - 1)]) for percent in PERCENTS)
    return Spread(count, float(ranked.mean()), p50, p90, p95, p99, float(ranked[-1]))


def figures_of(outcome: Outcome, planned: int | None, bounds: Bounds, *, open_loop: bool) -> Figures:
    """Computed once over the requests of all processes.

    Args:
      outcome: what was measured.
      planned: requests that were to be sent; None where time alone ended the load.
      bounds: for goodput.
      open_loop: the requests had times of their own.
    """
    samples = outcome.samples
    answered = [sample for sample in samples if sample.error is None]
    begin_s = min((sample.planned_s for sample in samples), default=0.0)
    seconds = max((sample.last_token_s for sample in answered), default=begin_s) - begin_s
    sending_s = max((sample.sent_s for sample in samples), default=begin_s) - begin_s
    messages = sum(len(sample.message_s) for sample in answered)
    tokens = sum(sample.tokens for sample in answered)
    errors = collections.Counter(_code(sample) for sample in samples if sample.error is not None)
    return Figures(
        requests=len(samples),
        answered=len(answered),
        unfinished=max(0, planned - len(samples)) if planned is not None else 0,
        errors=dict(errors.most_common()),
        examples={_code(s): s.error.partition(": ")[2] for s in reversed(samples) if s.error is not None},
        seconds=seconds,
        prompt_tokens=sum(sample.prompt_tokens for sample in answered),
        tokens=tokens,
        sent_per_s=_rate(len(samples) - 1, sending_s),
        requests_per_s=_rate(len(answered), seconds),
        tokens_per_s=_rate(tokens, seconds),
        ttft_with_wait_s=spread(s.first_token_s - s.planned_s for s in answered),
        ttft_s=spread(s.encode_to_first_s for s in answered),
        tpot_s=spread(map(tpot_of, answered)),
        inter_message_s=spread(gap for s in answered for gap in _gaps(s)),
        tokens_per_message=tokens / messages if messages else math.nan,
        latency_with_wait_s=spread(s.last_token_s - s.planned_s for s in answered),
        latency_s=spread(s.encode_to_last_s for s in answered),
        goodput=_goodput(samples, seconds, bounds) if limits_of(bounds) else None,
        client=_client(outcome, open_loop=open_loop),
    )


def limits_of(bounds: Bounds) -> list[tuple[str, float]]:
    """The limits that were given, by the names of flags."""
    named = (("latency", bounds.latency_s), ("ttft", bounds.ttft_s), ("tpot", bounds.tpot_s))
    return [(name, limit) for name, limit in named if limit is not None]


def tpot_of(sample: Sample) -> float:
    """Time per output token behind the first; NaN of an answer of one."""
    return (sample.last_token_s - sample.first_token_s) / (sample.tokens - 1) if sample.tokens > 1 else math.nan


def keeps(sample: Sample, bounds: Bounds) -> bool:
    """Whether it was answered and kept every bound.

    Where the server did not tell when encode began, the time from arrival stands in, which is longer.
    """
    if sample.error is not None:
        return False
    first_s, last_s = sample.first_token_s - sample.planned_s, sample.last_token_s - sample.planned_s
    if bounds.bound_from == "encode":
        first_s = first_s if math.isnan(sample.encode_to_first_s) else sample.encode_to_first_s
        last_s = last_s if math.isnan(sample.encode_to_last_s) else sample.encode_to_last_s
    # An answer of one token has no time per token to miss.
    figures = {"latency": last_s, "ttft": first_s, "tpot": tpot_of(sample)}
    return not any(figures[name] > limit for name, limit in limits_of(bounds))


def _goodput(samples: Sequence[Sample], seconds: float, bounds: Bounds) -> Goodput:
    kept = sum(keeps(sample, bounds) for sample in samples)
    return Goodput(kept, kept / len(samples) if samples else math.nan, _rate(kept, seconds))


def _client(outcome: Outcome, *, open_loop: bool) -> ClientFigures:
    send_lag = spread(s.sent_s - s.planned_s for s in outcome.samples if open_loop)
    loop_lag = spread(lag for report in outcome.reports if report is not None for lag in report.loop_lag_s)
    shares = tuple(math.nan if report is None else report.cpu_share for report in outcome.reports)
    late = {"requests leave": send_lag.p99, "the client's loops run": loop_lag.p99}
    found = [f"{what} {lag * 1e3:.0f} ms late (p99)" for what, lag in late.items() if lag > MOST_LAG_S]
    if busy := max((share for share in shares if share > MOST_CPU_SHARE), default=0.0):
        found.append(f"a client process is busy {busy:.0%} of the time")
    warning = f"{' and '.join(found)}: the figures show the client too" if found else None
    return ClientFigures(send_lag, loop_lag, shares, warning)


def _gaps(sample: Sample) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(sample.message_s)]


def _code(sample: Sample) -> str:
    assert sample.error is not None
    return sample.error.partition(": ")[0]


def _rate(count: float, seconds: float) -> float:
    return max(0.0, count) / seconds if seconds > 0 else 0.0
