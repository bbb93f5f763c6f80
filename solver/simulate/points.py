"""Candidates and what is predicted of them: the words between simulator and search.

A candidate is one point of (B_E, N_D) under one policy, pipeline and pair of micro-batch counts. Predictions come as
arrays over many points, so that a search evaluates thousands at once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What is fixed while candidates vary.

    Attributes:
      latency_percentile: of output length, at which latency is taken (99).
      ttft_percentile, tpot_percentile: of requests.
      clock: "encode": latencies run from the start of the request's encode phase; "arrival": its wait is added.
      compaction: finished rows leave after each iteration, or with the phase.
      delivery: when tokens reach who asked: each iteration, with the phase, or a phase late.
      cache_layout: "slots": max_rows x cache_tokens are allocated; "paged": the tokens that are there.
      cache_tokens: allocated positions of a row (slots).
      overflow: epsilon: the share of periods in which residents may exceed what is allocated.
    """

    latency_percentile: float = 99.0
    ttft_percentile: float = 99.0
    tpot_percentile: float = 99.0
    clock: Literal["encode", "arrival"] = "encode"
    compaction: Literal["iteration", "phase"] = "phase"
    delivery: Literal["iteration", "phase", "phase+1"] = "phase"
    cache_layout: Literal["slots", "paged"] = "slots"
    cache_tokens: int = 0
    overflow: float = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Predictions of P candidates.

    Attributes:
      encode_batch, decode_iterations: int64 [P]: B_E and N_D.
      throughput_rps: float64 [P]: requests per second.
      latency_s: [P]: end to end, at the conditions' percentile and clock.
      ttft_s, tpot_s: [P]: time to first token, time per output token, at their percentiles.
      period_s, encode_s, decode_phase_s: [P]: the period and its two parts.
      decode_batch: [P]: B_D, expected peak rows.
      max_rows: int64 [P]: rows to allocate, the (1 - overflow) quantile of residents.
      memory_bytes: float64 [stages, P]: per device of each stage, everything counted.
    """

    encode_batch: Ints
    decode_iterations: Ints
    throughput_rps: Floats
    latency_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    period_s: Floats
    encode_s: Floats
    decode_phase_s: Floats
    decode_batch: Floats
    max_rows: Ints
    memory_bytes: Floats


def refuse(points: Points, refused: NDArray[np.bool_]) -> Points:
    """The points with throughput 0 and infinite times and memory where `refused`, a bool [P], says so."""
    if not refused.any():
        return points
    times = ("latency_s", "ttft_s", "tpot_s", "period_s", "encode_s", "decode_phase_s", "memory_bytes")
    changed = {name: np.where(refused, np.inf, getattr(points, name)) for name in times}
    return dataclasses.replace(points, throughput_rps=np.where(refused, 0.0, points.throughput_rps), **changed)
