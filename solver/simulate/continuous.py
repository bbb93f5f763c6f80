"""Closed forms of continuous batching: refill before every iteration, with whole prompts or with chunks of them.

`iteration` (ORCA's order): each iteration first encodes whoever fits. Under saturation a slot never stands empty, so as
many prompts come as answers end: about Poisson with mean b / E[D].
`chunked` (Sarathi's): each iteration carries all decode rows and prompt tokens up to a budget (scheduling.md, 2.3).
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats, Ints
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
    call_rows = np.minimum(np.ceil(coming + _DEVIATIONS * np.sqrt(coming)), rows).astype(np.int64)
    points = Points(
        encode_batch=np.ceil(coming).astype(np.int64),
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
            -(-call_rows // encode_parts),
            _tokens(lengths, conditions, real),
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


def _tokens(lengths: Lengths, conditions: Conditions, rows: Floats) -> Floats:
    """The (1 - overflow) quantile of cached tokens of so many residents, [P], by the normal distribution."""
    found = residents(lengths, 1)
    mean = found.tokens[0] / max(found.rows[0], 1e-300)
    ages = np.arange(1, lengths.most_decode + 1)
    alive, inputs, inputs2 = (tail[1:] for tail in (lengths.alive, lengths.input_alive, lengths.input2_alive))
    behind = ages - 1.0
    second = float((inputs2 + 2 * behind * inputs + behind**2 * alive).sum()) / max(float(alive.sum()), 1e-300)
    deviation = np.sqrt(max(second - mean**2, 0.0))
    return rows * mean + normal_quantile(1 - conditions.overflow) * np.sqrt(rows) * deviation


def evaluate_chunked(
    pipeline: Pipeline,
    lengths: Lengths,
    conditions: Conditions,
    token_budget: Ints,
    max_rows: Ints,
    micro_batches: Ints | int = 1,
    *,
    fused: bool = True,
    memory: MemoryModel | None = None,
    padding: Padding | None = None,
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates under saturation.

    Args:
      token_budget: int64 [P]: C, decode rows plus prompt tokens of one iteration.
      max_rows: int64 [P]: rows that may be held, their prompts wholly encoded or not; fewer are where prompts take up
        the budget.
      micro_batches: int64 [P]: parts of an iteration that follow each other through the stages.
      fused: prompts and rows share one pass over the weights, as engines with a hybrid kernel do: the fixed part of
        encoding, which is the intercept of its time by rows, is then not paid. False: calls of their own.
      padding: of a profile of padded shapes, whose engine makes calls of their own; a chunk is counted with its share
        of a packed call.
      The rest as in `evaluate_rra`.

    Returns:
      Points; `encode_batch` is the mean number of prompts an iteration rounded up, `encode_s` the time prompts add.
      Refused where the budget leaves no prompt token beside the rows.
    """
    budget, caps, parts = (
        np.ravel(column).astype(np.int64) for column in np.broadcast_arrays(token_budget, max_rows, micro_batches)
    )
    mean_input, mean_decode = lengths.mean_input, max(lengths.mean_decode, 1e-9)
    workload = lengths.workload
    prompts, where = np.unique(workload.input_tokens, return_inverse=True)
    share = np.bincount(where.ravel(), weights=workload.probability)
    saturated = budget * mean_decode / (mean_input + mean_decode)
    rows = np.minimum(caps.astype(np.float64), saturated)
    # A row is held while its prompt is encoded, too: of `caps`, those that decode are D in D plus its chunks.
    held = 1 + (share @ np.ceil(prompts[:, None] / np.maximum(budget - rows, 1.0))) / mean_decode
    rows = np.minimum(caps / held, saturated)
    room = budget - rows
    prompt_tokens = rows * mean_input / mean_decode
    most = rows if padding is None else caps
    beyond = (room < 1) | (most > pipeline.most_rows * parts) | (prompt_tokens / mean_input > pipeline.most_rows)
    rows, prompt_tokens, room = (np.where(beyond, 1.0, column) for column in (rows, prompt_tokens, room))
    pieces = parts.astype(np.float64)
    encode = _prompts_s(pipeline, lengths, prompt_tokens / mean_input / pieces, fused and padding is None)
    # A micro-batch of prompt tokens alone reads all weights, too: it costs a row at least.
    decode = _rows_s(pipeline, lengths, np.maximum(rows / pieces, 1.0), -(-caps // parts), padding) + pipeline.phase_s
    encode, decode = _shared(pipeline, encode, decode, pieces)
    iteration = encode + decode
    throughput = rows / (mean_decode * iteration)
    chunks = np.ceil(prompts[:, None] / np.maximum(room, 1.0))
    mean_chunks = share @ chunks

    def service(steps: Ints) -> Floats:
        return (mean_chunks + steps[:, None]) * iteration

    first_mean = service(np.array([0 if lengths.first_token == "encode" else 1]))[0]
    latency, _, tpot = percentiles(lengths, conditions, service, first_mean, iteration, throughput, rate_rps, with_tpot)
    at = np.searchsorted(np.cumsum(share), conditions.ttft_percentile / 100 - 1e-9)
    longest = chunks[min(int(at), len(prompts) - 1)]
    ttft = first_mean + (longest - mean_chunks) * iteration
    if conditions.clock == "arrival":
        ttft = np.where(np.isfinite(latency), ttft + iteration, np.inf)
    most_rows = np.minimum(caps, np.ceil(rows * held).astype(np.int64))
    points = Points(
        encode_batch=np.ceil(prompt_tokens / mean_input).astype(np.int64),
        decode_iterations=np.ones_like(budget),
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=iteration,
        encode_s=encode,
        decode_phase_s=decode,
        decode_batch=rows,
        max_rows=most_rows,
        memory_bytes=candidate_bytes(
            pipeline,
            conditions,
            memory,
            "both",
            most_rows,
            np.ones_like(budget),
            _tokens(lengths, conditions, rows),
            workload.most_tokens,
        ),
    )
    return refuse(points, beyond)


def _prompts_s(pipeline: Pipeline, lengths: Lengths, prompts: Floats, fused: bool) -> Floats:
    """float64 [stages, P]: what so many prompts add to a micro-batch.

    The fixed part is read off where the profile is: batches of so few prompts that their like of equal lengths has less
    than one row are tabulated as that one long row, which is no line to find an intercept with.
    """
    encode = pipeline.encode_s(prompts)
    if not fused:
        return encode
    count = float(np.ceil(lengths.mean_input2 / max(lengths.mean_input, 1e-300) ** 2))
    if 2 * count > pipeline.most_rows:
        return encode
    one, two = (pipeline.encode_s(np.array([size])) for size in (count, 2 * count))
    fixed = np.maximum(2 * one - two, 0.0)
    return np.where(prompts < count, prompts / count * (one - fixed), np.maximum(encode - fixed, 0.0))


def _rows_s(pipeline: Pipeline, lengths: Lengths, rows: Floats, most: Ints, padding: Padding | None) -> Floats:
    """float64 [stages, P]: one iteration of the rows of a micro-batch."""
    if padding is None:
        return pipeline.decode_s(rows, np.full(rows.shape, residents(lengths, 1).context[0]))
    most = np.maximum(most, np.ceil(rows).astype(np.int64))
    share, rungs, attended = decode_mixture(padding, lengths, 1, rows, np.zeros_like(rows), most)
    return (share * pipeline.decode_s(rungs, attended[:, None])).sum(axis=1)


def _shared(pipeline: Pipeline, encode: Floats, decode: Floats, parts: Floats) -> tuple[Floats, Floats]:
    """What prompts and what rows take of an iteration, [P] each: of the bottleneck's micro-batches, or of the path.

    Iterations follow each other without a gap where there are as many micro-batches as stages.
    """
    both = encode + decode
    bottleneck, path = parts * both.max(axis=0), both.sum(axis=0) + pipeline.return_s * (len(pipeline.stages) > 1)
    total = np.maximum(bottleneck, path)
    share = encode.sum(axis=0) / both.sum(axis=0)
    return total * share, total * (1 - share)
