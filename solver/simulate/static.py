"""Closed form of static batching: encode a batch, decode all its rows until the longest answer ends, no refill.

`static` cuts both phases into the same number of micro-batches; `dsi` (DeepSpeed Inference) may cut the prompts finer
than the tokens. Decode goes in dispatches of `decode_iterations`; the one in which the last row ends stops with it.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.simulate.costs import Pipeline
from solver.simulate.iteration import encode_phase_s, iterations_s
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.padding import Padding, attended_tokens, reach_of_batch
from solver.simulate.points import Conditions, Points, refuse
from solver.simulate.quantiles import normal_quantile


def evaluate_static(
    pipeline: Pipeline,
    lengths: Lengths,
    conditions: Conditions,
    batch: Ints,
    decode_iterations: Ints | int = 1,
    encode_micro_batches: Ints | int = 1,
    decode_micro_batches: Ints | int = 1,
    *,
    memory: MemoryModel | None = None,
    padding: Padding | None = None,
    seamless: bool = False,
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates under saturation; a request's latency ends at its own last token.

    Args:
      batch: int64 [P]: requests encoded and decoded together.
      decode_iterations: int64 [P]: iterations in one dispatch; finished rows go on, and tokens are delivered by the
        dispatch unless the conditions say iteration (by the whole of it: that the last one stops early is left out).
      encode_micro_batches, decode_micro_batches: int64 [P]: equal for `static`, free for `dsi`.
      seamless: dispatches follow each other without a barrier, as in engines whose devices themselves see the batch's
        end; this repository's runner waits for the last stage after each.
      The rest as in `evaluate_rra`.
    """
    rows, iterations, encode_parts, decode_parts = (
        np.ravel(column).astype(np.int64)
        for column in np.broadcast_arrays(batch, decode_iterations, encode_micro_batches, decode_micro_batches)
    )
    most = pipeline.most_rows
    beyond = (rows > most * encode_parts) | (rows > most * decode_parts)
    real = np.where(beyond, 1, rows).astype(np.float64)
    encode = encode_phase_s(pipeline, real, encode_parts.astype(np.float64))
    decode, drain = _decode_s(pipeline, lengths, real, iterations, decode_parts.astype(np.float64), padding, seamless)
    columns = np.arange(real.size)[None, :]
    period = encode + (_longest(lengths, real) * (decode + drain)[: lengths.most_decode + 1]).sum(axis=0)
    throughput = real / period
    by_phase = conditions.delivery != "iteration"

    def service(steps: Ints) -> Floats:
        at = _rounded(steps, iterations) if by_phase else np.broadcast_to(steps[:, None], (steps.size, real.size))
        if conditions.delivery == "phase+1":
            at = np.minimum(at + iterations * (at > 0), len(decode) - 1)
        return encode + decode[at, columns] + drain[at, columns]

    first = encode if lengths.first_token == "encode" else service(np.array([1]))[0]
    latency, ttft, tpot = percentiles(lengths, conditions, service, first, period, throughput, rate_rps, with_tpot)
    spread = np.sqrt(np.maximum(lengths.mean_input2 - lengths.mean_input**2, 0.0))
    prompts = real * lengths.mean_input + normal_quantile(1 - conditions.overflow) * np.sqrt(real) * spread
    tokens = prompts + real * lengths.most_decode
    call_rows = -(-rows // encode_parts)
    points = Points(
        encode_batch=rows,
        decode_iterations=iterations,
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=period,
        encode_s=encode,
        decode_phase_s=period - encode,
        decode_batch=real,
        max_rows=rows,
        memory_bytes=candidate_bytes(
            pipeline, conditions, memory, "both", rows, call_rows, tokens, lengths.workload.most_tokens
        ),
    )
    return refuse(points, beyond)


def _rounded(steps: Ints, iterations: Ints) -> Ints:
    """int64 [steps, P]: up to a multiple of the dispatch."""
    return -(-steps[:, None] // iterations) * iterations


def _longest(lengths: Lengths, batch: Floats) -> Floats:
    """float64 [u, P], u = 0 .. most_decode: P(the longest of the batch has D = u)."""
    at_most = 1 - np.append(lengths.alive[1:], 0.0)
    return np.diff(at_most[:, None] ** batch, axis=0, prepend=0.0)


def _decode_s(
    pipeline: Pipeline,
    lengths: Lengths,
    batch: Floats,
    iterations: Ints,
    parts: Floats,
    padding: Padding | None,
    seamless: bool,
) -> tuple[Floats, Floats]:
    """float64 [u, P] each, u = 0 .. the longest answer rounded up twice: iterations 1 .. u, and the drain after u.

    Every row goes on to the end, so its context grows whether or not it has ended.
    """
    longest = lengths.most_decode + 2 * int(iterations.max(initial=1))
    if padding is None:
        # A request that its encode phase has answered takes no row.
        decodes = max(float(lengths.alive[1:2].sum()), 1e-300)
        first = float(lengths.input_alive[1:2].sum()) / decodes
        found = iterations_s(pipeline, batch[None, :] * decodes, first + np.arange(longest, dtype=np.float64), parts)
        apart, drain = found.apart_s, found.drain_s
    else:
        apart, drain = _padded(pipeline, lengths, batch, iterations, parts, padding, longest)
    starts = (np.arange(longest)[:, None] % iterations) == 0
    total = np.cumsum(apart + pipeline.phase_s * starts, axis=0)
    if not seamless:
        # Each dispatch but the one that runs has drained.
        total[1:] += np.cumsum(drain[:-1] * starts[1:], axis=0)
    zero = np.zeros((1, batch.size))
    return np.concatenate([zero, total]), np.concatenate([zero, drain])


def _padded(
    pipeline: Pipeline,
    lengths: Lengths,
    batch: Floats,
    iterations: Ints,
    parts: Floats,
    padding: Padding,
    longest: int,
) -> tuple[Floats, Floats]:
    """All rows of the cache, attending to the rung that covers the longest prompt and what was generated."""
    rungs = padding.cache_rungs
    shape = (longest, batch.size)
    apart, drain = np.zeros(shape), np.zeros(shape)
    for count in np.unique(iterations):
        where = np.flatnonzero(iterations == count)
        ends = -(-(np.arange(longest) + 1) // count) * count
        share = reach_of_batch(padding, lengths, np.minimum(ends, lengths.most_decode), batch[where])
        for j, rung in enumerate(rungs):
            attended = attended_tokens(rung, int(count), True, rungs)
            one = iterations_s(pipeline, batch[None, where], np.array([float(attended)]), parts[where])
            apart[:, where] += share[j] * one.apart_s
            drain[:, where] += share[j] * one.drain_s
    return apart, drain
