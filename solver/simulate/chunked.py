"""Closed form of `chunked`, continuous batching in Sarathi's way: iterations carry all decode rows and prompt tokens.

The two share a token budget, so how many rows decode follows from the lengths (scheduling.md, 2.3).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints
from solver.plan.plan import encode_call_rows
from solver.simulate.continuous import tokens_held
from solver.simulate.costs import Pipeline
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths, residents
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.padding import Padding, decode_mixture
from solver.simulate.points import Conditions, Points, refuse


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
    load, beyond = _settled(pipeline, lengths, budget, caps, parts, whole_cache=padding is not None)
    encode, decode = _iteration_s(pipeline, lengths, load, caps, parts, fused, padding)
    iteration = encode + decode
    throughput = load.rows / (load.mean_decode * iteration)
    latency, ttft, tpot = _times(lengths, conditions, load, iteration, throughput, rate_rps, with_tpot)
    most_rows = np.minimum(caps, np.ceil(load.rows * load.held).astype(np.int64))
    prompts = np.ceil(load.prompts).astype(np.int64)
    call_rows = -(-prompts // parts)
    if padding is not None:
        call_rows = np.minimum(call_rows, encode_call_rows(pipeline.most_rows, padding.max_prompt_tokens))
    points = Points(
        encode_batch=prompts,
        decode_iterations=np.ones_like(budget),
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=iteration,
        encode_s=encode,
        decode_phase_s=decode,
        decode_batch=load.rows,
        max_rows=most_rows,
        memory_bytes=candidate_bytes(
            pipeline,
            conditions,
            memory,
            "both",
            most_rows,
            call_rows,
            tokens_held(lengths, conditions, load.rows),
            lengths.workload.most_tokens,
            budget,
        ),
    )
    return refuse(points, beyond)


@dataclasses.dataclass(frozen=True, eq=False)
class _Load:
    """What an iteration carries, [P] each unless said otherwise.

    Attributes:
      rows: that decode.
      held: rows held for each that decodes: its prompt's chunks take iterations, too.
      prompts: encoded in an iteration, on average.
      chunks: float64 [prompt lengths, P]: iterations that a prompt takes.
      share: float64 [prompt lengths]: of requests.
      mean_decode: of requests, decode iterations.
    """

    rows: Floats
    held: Floats
    prompts: Floats
    chunks: Floats
    share: Floats
    mean_decode: float


def _settled(
    pipeline: Pipeline, lengths: Lengths, budget: Ints, caps: Ints, parts: Ints, *, whole_cache: bool
) -> tuple[_Load, NDArray[np.bool_]]:
    """The steady state under saturation, and which candidates have none. `whole_cache`: calls may be of all rows."""
    mean_input, mean_decode = lengths.mean_input, max(lengths.mean_decode, 1e-9)
    workload = lengths.workload
    prompts, where = np.unique(workload.input_tokens, return_inverse=True)
    share = np.bincount(where.ravel(), weights=workload.probability).astype(np.float64)
    saturated = budget * mean_decode / (mean_input + mean_decode)
    rows = np.minimum(caps.astype(np.float64), saturated)
    # A row is held while its prompt is encoded, too: of `caps`, those that decode are D in D plus its chunks.
    held = 1 + (share @ np.ceil(prompts[:, None] / np.maximum(budget - rows, 1.0))) / mean_decode
    rows = np.minimum(caps / held, saturated)
    room = budget - rows
    prompt_tokens = rows * mean_input / mean_decode
    most = caps if whole_cache else rows
    beyond = (room < 1) | (most > pipeline.most_rows * parts) | (prompt_tokens / mean_input > pipeline.most_rows)
    rows, prompt_tokens, room = (np.where(beyond, 1.0, column) for column in (rows, prompt_tokens, room))
    chunks = np.ceil(prompts[:, None] / np.maximum(room, 1.0))
    return _Load(rows, held, prompt_tokens / mean_input, chunks, share, mean_decode), beyond


def _iteration_s(
    pipeline: Pipeline,
    lengths: Lengths,
    load: _Load,
    caps: Ints,
    parts: Ints,
    fused: bool,
    padding: Padding | None,
) -> tuple[Floats, Floats]:
    """What prompts and what rows take of an iteration, [P] each."""
    pieces = parts.astype(np.float64)
    encode = _prompts_s(pipeline, lengths, load.prompts / pieces, fused and padding is None)
    # A micro-batch of prompt tokens alone reads all weights, too: it costs a row at least.
    rows = np.maximum(load.rows / pieces, 1.0)
    decode = _rows_s(pipeline, lengths, rows, -(-caps // parts), padding) + pipeline.phase_s
    return _shared(pipeline, encode, decode, pieces)


def _times(
    lengths: Lengths,
    conditions: Conditions,
    load: _Load,
    iteration_s: Floats,
    throughput_rps: Floats,
    rate_rps: float | None,
    with_tpot: bool,
) -> tuple[Floats, Floats, Floats]:
    """Latency, time to first token and time per output token, [P] each; a request takes its chunks, then its tokens."""
    mean_chunks = load.share @ load.chunks

    def service(steps: Ints) -> Floats:
        return (mean_chunks + steps[:, None]) * iteration_s

    first_mean = service(np.array([0 if lengths.first_token == "encode" else 1]))[0]
    latency, _, tpot = percentiles(
        lengths, conditions, service, first_mean, iteration_s, throughput_rps, rate_rps, with_tpot
    )
    # The first token is late where the prompt is long.
    at = np.searchsorted(np.cumsum(load.share), conditions.ttft_percentile / 100 - 1e-9)
    longest = load.chunks[min(int(at), len(load.share) - 1)]
    ttft = first_mean + (longest - mean_chunks) * iteration_s
    if conditions.clock == "arrival":
        ttft = np.where(np.isfinite(latency), ttft + iteration_s, np.inf)
    return latency, ttft, tpot


def _prompts_s(pipeline: Pipeline, lengths: Lengths, prompts: Floats, fused: bool) -> Floats:
    """float64 [stages, P]: what so many prompts add to a micro-batch.

    The fixed part is read off where the profile is: batches of so few prompts that their like of equal lengths has less
    than one row are tabulated as that one long row, which is no line to find an intercept with.
    """
    if not fused:
        return pipeline.encode_s(prompts)
    return beside_rows_s(pipeline, prompts, whole_prompts(lengths.mean_input, lengths.mean_input2))


def whole_prompts(mean_input: float, mean_input2: float) -> int:
    """Prompts of a workload whose like of equal lengths, tokens^2 / sum of squares, has a row at least."""
    return math.ceil(mean_input2 / max(mean_input, 1e-300) ** 2)


def beside_rows_s(pipeline: Pipeline, prompts: Floats, whole: int) -> Floats:
    """float64 [stages, P]: what prompts add to a pass that rows pay for: their encoding less its fixed part.

    Args:
      prompts: float64 [P].
      whole: of `whole_prompts`; fewer cost their share of as many.
    """
    encode = pipeline.encode_s(prompts)
    if 2 * whole > pipeline.most_rows:
        return encode
    one, two = (pipeline.encode_s(np.array([float(size)])) for size in (whole, 2 * whole))
    fixed = np.maximum(2 * one - two, 0.0)
    return np.where(prompts < whole, prompts / whole * (one - fixed), np.maximum(encode - fixed, 0.0))


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
