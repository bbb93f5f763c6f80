"""Closed form of RRA: encode B_E prompts, run N_D decode iterations, again (scheduling.md, 2.2), over many candidates.

Candidates are taken together by N_D, since the steady state depends on the workload and N_D alone: B_E scales it.
Policy `iteration` at saturation is the same with N_D = 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints
from solver.plan.plan import encode_call_rows
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import encode_phase_s, iterations_s
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths, Residents, residents
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.padding import Padding, decode_mixture
from solver.simulate.points import Conditions, Points, refuse
from solver.simulate.quantiles import normal_quantile, occupancy, resident_quantile


def evaluate_rra(
    pipeline: Pipeline,
    lengths: Lengths,
    conditions: Conditions,
    encode_batch: Ints,
    decode_iterations: Ints,
    encode_micro_batches: Ints | int = 1,
    decode_micro_batches: Ints | int = 1,
    *,
    memory: MemoryModel | None = None,
    padding: Padding | None = None,
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates in the steady state under saturation.

    Args:
      pipeline: all stages hold their layers for both phases.
      lengths, conditions: of the workload; what is asked.
      encode_batch, decode_iterations: int64 [P]: B_E and N_D.
      encode_micro_batches, decode_micro_batches: m_E and m_D, how many parts a batch is cut into.
      memory: how bytes are counted; None: weights and cache by the units' own figures.
      padding: of a profile of padded shapes.
      rate_rps: on the arrival clock, requests per second. A request waits for the end of the period that it falls
        into, uniformly over the period at full batch; at or beyond capacity, or without a rate, its wait is infinite.
      with_tpot: False leaves `tpot_s` NaN, which spares the most expensive quantile.

    Returns:
      Points. Candidates whose batches exceed the rows that costs were tabulated for have throughput 0 and infinite
      latency and memory.
    """
    batch, iterations, encode_parts, decode_parts = (
        np.ravel(column).astype(np.int64)
        for column in np.broadcast_arrays(encode_batch, decode_iterations, encode_micro_batches, decode_micro_batches)
    )
    if batch.size and min(batch.min(), iterations.min(), encode_parts.min(), decode_parts.min()) < 1:
        raise ValueError("encode_batch, decode_iterations and micro-batches: give at least 1 of each")
    found = _Columns.empty(batch.size)
    order = np.argsort(iterations, kind="stable")
    starts = np.flatnonzero(np.diff(iterations[order], prepend=-1))
    for where in np.split(order, starts[1:]) if batch.size else []:
        steady = _Steady(lengths, conditions, int(iterations[where[0]]))
        found.fill(where, pipeline, steady, batch, encode_parts, decode_parts, padding, rate_rps, with_tpot)
    call_rows = -(-batch // encode_parts)
    if padding is not None:
        call_rows = np.minimum(call_rows, encode_call_rows(pipeline.most_rows, padding.max_prompt_tokens))
    bytes_of = candidate_bytes(
        pipeline, conditions, memory, "both", found.max_rows, call_rows, found.tokens, lengths.workload.most_tokens
    )
    throughput, latency, ttft, tpot, period, encode, decode = found.times
    points = Points(
        encode_batch=batch,
        decode_iterations=iterations,
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=period,
        encode_s=encode,
        decode_phase_s=decode,
        decode_batch=found.decode_batch,
        max_rows=found.max_rows,
        memory_bytes=bytes_of,
    )
    return refuse(points, period == 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Columns:
    """What is worked out for P candidates, filled group by group of the same N_D.

    Attributes:
      times: float64 [7, P]: throughput, latency, TTFT, TPOT, period, encode phase, decode phase; 0 where refused.
      decode_batch: float64 [P]: expected peak rows.
      max_rows: int64 [P]: rows to allocate.
      tokens: float64 [P]: cached tokens to allocate.
    """

    times: Floats
    decode_batch: Floats
    max_rows: Ints
    tokens: Floats

    @classmethod
    def empty(cls, count: int) -> _Columns:
        return cls(np.zeros((7, count)), np.zeros(count), np.zeros(count, np.int64), np.zeros(count))

    def fill(
        self,
        where: Ints,
        pipeline: Pipeline,
        steady: _Steady,
        batch: Ints,
        encode_parts: Ints,
        decode_parts: Ints,
        padding: Padding | None,
        rate_rps: float | None,
        with_tpot: bool,
    ) -> None:
        """The candidates at `where`, whose N_D is that of `steady`."""
        self.decode_batch[where] = batch[where] * steady.residents.rows[0]
        self.max_rows[where] = resident_quantile(batch[where], steady.held, steady.conditions.overflow)
        self.tokens[where] = steady.token_quantile(batch[where])
        peak = self.decode_batch if padding is None else self.max_rows
        group = where[_tabulated(pipeline, batch[where] / encode_parts[where], peak[where] / decode_parts[where])]
        if group.size:
            times = _times(
                pipeline,
                steady,
                batch[group].astype(np.float64),
                encode_parts[group],
                decode_parts[group],
                self.max_rows[group],
                padding,
            )
            self.times[:, group] = _predict(steady, times, batch[group], rate_rps, with_tpot)


class _Steady:
    """The steady state at one N_D."""

    def __init__(self, lengths: Lengths, conditions: Conditions, iterations: int) -> None:
        self.lengths, self.conditions, self.iterations = lengths, conditions, iterations
        self.residents: Residents = residents(lengths, iterations)
        self.held = occupancy(lengths, iterations, conditions.delivery == "phase+1")

    def token_quantile(self, batch: Ints) -> Floats:
        """float64 [P]: cached tokens to allocate.

        With compaction by phase a row is counted with the whole phase's iterations, since it runs on to their end.
        """
        mean, variance = self.residents.tokens, self.residents.tokens_variance
        if self.conditions.compaction == "phase":
            mean, variance = phase_tokens(self.lengths, self.iterations)
        return token_quantile(mean, variance, batch, self.conditions.overflow)


def token_quantile(mean: Floats, variance: Floats, batch: Ints | Floats, overflow: float) -> Floats:
    """float64 [P]: the largest over u of the (1 - overflow) quantile of cached tokens, by the normal distribution.

    Args:
      mean, variance: float64 [U]: of tokens per admitted request at each iteration u.
      batch: [P]: requests admitted a period.
    """
    scale = batch.astype(np.float64)
    deviation = np.sqrt(np.maximum(variance, 0.0))
    # The peak lies at one of the few u that no other exceeds in mean and deviation.
    best = _undominated(mean, deviation)
    z = normal_quantile(1 - overflow)
    return (scale[None, :] * mean[best, None] + z * np.sqrt(scale)[None, :] * deviation[best, None]).max(axis=0)


def phase_tokens(lengths: Lengths, iterations: int) -> tuple[Floats, Floats]:
    """Mean and variance per admitted request, [1] each, of tokens where every resident holds its whole phase."""
    alive, inputs, inputs2 = (
        tail[1::iterations] for tail in (lengths.alive, lengths.input_alive, lengths.input2_alive)
    )
    ahead = iterations * (np.arange(alive.size) + 1.0)
    first = inputs + ahead * alive
    second = inputs2 + 2 * ahead * inputs + ahead**2 * alive
    return np.array([first.sum()]), np.array([(second - first**2).sum()])


def _undominated(mean: Floats, deviation: Floats) -> np.ndarray:
    order = np.lexsort((-deviation, -mean))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(deviation[order])[:-1]])
    return order[deviation[order] > before]


@dataclasses.dataclass(frozen=True, eq=False)
class _Times:
    """Of one group: T_E [P]; decode_s [N + 1, P]: iterations 1 .. u together; drain_s [N, P]: b after iteration u."""

    encode_s: Floats
    decode_s: Floats
    drain_s: Floats


def _times(
    pipeline: Pipeline,
    steady: _Steady,
    batch: Floats,
    encode_parts: Ints,
    decode_parts: Ints,
    max_rows: Ints,
    padding: Padding | None,
) -> _Times:
    encode = encode_phase_s(pipeline, batch, encode_parts.astype(np.float64))
    found, count = steady.residents, steady.iterations
    parts = decode_parts.astype(np.float64)
    if padding is not None:
        deviation = np.sqrt(batch * found.rows_variance)
        share, rows, attended = decode_mixture(
            padding, steady.lengths, count, batch * found.rows[0], deviation, max_rows
        )
        one = iterations_s(pipeline, rows, attended, parts)
        apart, drain = ((share * times).sum(axis=0, keepdims=True) for times in (one.apart_s, one.drain_s))
        apart, drain = np.repeat(apart, count, axis=0), np.repeat(drain, count, axis=0)
    elif steady.conditions.compaction == "phase":
        # Rows that end go on to the end of the phase, and so does their context.
        context = found.context[0] + np.arange(count)
        one = iterations_s(pipeline, batch[None, :] * found.rows[0], context, parts)
        apart, drain = one.apart_s, one.drain_s
    else:
        one = iterations_s(pipeline, batch[None, :] * found.rows[:, None], found.context, parts)
        apart, drain = one.apart_s, one.drain_s
    decode = np.zeros((count + 1, batch.size))
    np.cumsum(apart, axis=0, out=decode[1:])
    if pipeline.phase_s:
        decode[1:] += pipeline.phase_s
    return _Times(encode, decode, drain)


def _predict(
    steady: _Steady, times: _Times, batch: Ints, rate_rps: float | None, with_tpot: bool
) -> tuple[Floats, ...]:
    """Throughput, latency, TTFT, TPOT, period, encode phase, decode phase."""
    decode_phase = times.decode_s[-1] + times.drain_s[-1]
    period = times.encode_s + decode_phase
    throughput = batch / period

    def service(steps: Ints) -> Floats:
        return _latency_s(steady, times, period, steps)

    # The encode phase delivers what it emits, under every delivery.
    first = times.encode_s if steady.lengths.first_token == "encode" else service(np.array([1]))[0]
    latency, ttft, tpot = percentiles(
        steady.lengths, steady.conditions, service, first, period, throughput, rate_rps, with_tpot
    )
    return throughput, latency, ttft, tpot, period, times.encode_s, decode_phase


def _latency_s(steady: _Steady, times: _Times, period: Floats, steps: Ints) -> Floats:
    """float64 [lengths, P]: L_service of requests of so many decode iterations."""
    periods = -(-steps // steady.iterations)
    delivery = steady.conditions.delivery
    if delivery == "iteration":
        last = np.maximum(steps - (periods - 1) * steady.iterations, 1)
        through = (periods - 1)[:, None] * period + times.encode_s + times.decode_s[last] + times.drain_s[last - 1]
    else:
        through = (periods + (delivery == "phase+1"))[:, None] * period
    return np.where(steps[:, None] == 0, times.encode_s, through)


def _tabulated(pipeline: Pipeline, encoded: Floats, decoded: Floats) -> NDArray[np.bool_]:
    """Whether these rows of micro-batches, [P] each, lie within those that costs were tabulated for."""
    return (encoded <= pipeline.most_rows) & (decoded <= pipeline.most_rows)
