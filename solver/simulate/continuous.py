"""Closed form of `iteration`, continuous batching in ORCA's order: each iteration first encodes whoever fits.

Under saturation a slot never stands empty, so as many prompts come as answers end: about Poisson with mean b / E[D].
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.plan import encode_call_rows
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import encode_phase_s, iterations_s
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths, residents
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.padding import Padding, decode_mixture
from solver.simulate.points import Conditions, Points, refuse
from solver.simulate.quantiles import normal_quantile

_DEVIATIONS = 6.0


def evaluate_iteration(
    pipeline: Pipeline,
    lengths: Lengths,
    conditions: Conditions,
    max_rows: Ints,
    encode_micro_batches: Ints | int = 1,
    decode_micro_batches: Ints | int = 1,
    *,
    memory: MemoryModel | None = None,
    padding: Padding | None = None,
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates that keep `max_rows` (int64 [P]) decoding; the rest as in `evaluate_rra`.

    `encode_batch` of the result is the mean number of prompts an iteration, rounded up.
    """
    rows, encode_parts, decode_parts = (
        np.ravel(column).astype(np.int64)
        for column in np.broadcast_arrays(max_rows, encode_micro_batches, decode_micro_batches)
    )
    beyond = rows > pipeline.most_rows
    real = np.where(beyond, 1, rows).astype(np.float64)
    coming = real / max(lengths.mean_decode, 1.0)
    encode, own = _refill_s(pipeline, coming, real, encode_parts.astype(np.float64))
    decode = _iteration_s(pipeline, lengths, real, decode_parts.astype(np.float64), padding)
    period = encode + decode
    throughput = real / (max(lengths.mean_decode, 1e-300) * period)

    def service(steps: Ints) -> Floats:
        # Its own prompt in a batch of its own company, then an iteration each, the others' prompts between them.
        return own + steps[:, None] * decode + np.maximum(steps[:, None] - 1, 0) * encode

    first = own if lengths.first_token == "encode" else service(np.array([1]))[0]
    latency, ttft, tpot = percentiles(lengths, conditions, service, first, period, throughput, rate_rps, with_tpot)
    prompts = np.ceil(coming).astype(np.int64)
    call_rows = -(-prompts // encode_parts)
    if padding is not None:
        call_rows = np.minimum(call_rows, encode_call_rows(pipeline.most_rows, padding.max_prompt_tokens))
    points = Points(
        encode_batch=prompts,
        decode_iterations=np.ones_like(rows),
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=period,
        encode_s=encode,
        decode_phase_s=decode,
        decode_batch=real,
        max_rows=rows,
        memory_bytes=candidate_bytes(
            pipeline,
            conditions,
            memory,
            "both",
            rows,
            call_rows,
            tokens_held(lengths, conditions, real),
            lengths.workload.most_tokens,
        ),
    )
    return refuse(points, beyond)


def _refill_s(pipeline: Pipeline, coming: Floats, rows: Floats, parts: Floats) -> tuple[Floats, Floats]:
    """Encode time of an iteration, and of one that a given request is in, [P] each: means over Poisson arrivals."""
    most = int(min(rows.max(), np.ceil(coming.max() + _DEVIATIONS * np.sqrt(coming.max()) + _DEVIATIONS)))
    counts = np.arange(most + 1, dtype=np.float64)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(counts[1:], 1.0)))])
    chance = np.exp(counts[:, None] * np.log(coming) - coming - factorial[:, None])
    chance /= chance.sum(axis=0)
    seconds = np.stack([encode_phase_s(pipeline, np.full(rows.size, count), parts) for count in counts])
    mean = (chance * seconds).sum(axis=0)
    company = chance * counts[:, None]
    return mean, (company * seconds).sum(axis=0) / np.maximum(company.sum(axis=0), 1e-300)


def _iteration_s(pipeline: Pipeline, lengths: Lengths, rows: Floats, parts: Floats, padding: Padding | None) -> Floats:
    """float64 [P]: one decode iteration to the end of its drain."""
    if padding is None:
        found = iterations_s(pipeline, rows[None, :], residents(lengths, 1).context[:1], parts)
        return (found.apart_s + found.drain_s)[0] + pipeline.phase_s
    share, rungs, attended = decode_mixture(padding, lengths, 1, rows, np.zeros_like(rows), rows.astype(np.int64))
    found = iterations_s(pipeline, rungs, attended, parts)
    return (share * (found.apart_s + found.drain_s)).sum(axis=0) + pipeline.phase_s


def tokens_held(lengths: Lengths, conditions: Conditions, rows: Floats) -> Floats:
    """The (1 - overflow) quantile of cached tokens of so many residents, [P], by the normal distribution."""
    found = residents(lengths, 1)
    mean = found.tokens[0] / max(found.rows[0], 1e-300)
    ages = np.arange(1, lengths.most_decode + 1)
    alive, inputs, inputs2 = (tail[1:] for tail in (lengths.alive, lengths.input_alive, lengths.input2_alive))
    behind = ages - 1.0
    second = float((inputs2 + 2 * behind * inputs + behind**2 * alive).sum()) / max(float(alive.sum()), 1e-300)
    deviation = np.sqrt(max(second - mean**2, 0.0))
    return rows * mean + normal_quantile(1 - conditions.overflow) * np.sqrt(rows) * deviation
