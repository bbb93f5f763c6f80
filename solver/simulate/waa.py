"""Closed form of WAA: some devices encode, others decode, asynchronously (scheduling.md, 2.3).

Encode sends a batch of B_E every cycle; decode takes it in between two iterations and refills at once, so its residents
obey Little's law: b = lambda E[D] T_D(b). `disaggregated` is the same with replicas of either side. WAA-C and WAA-M
differ only in which devices stand on which side.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.cluster import Link
from solver.facts.workload import Floats, Ints
from solver.plan.plan import encode_call_rows
from solver.plan.under_way import buffered_tokens, most_batches
from solver.simulate.costs import Pipeline, UnitCosts
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths, residents
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.padding import Padding, moved_tokens
from solver.simulate.points import Conditions, Points, refuse
from solver.simulate.waa_decode import MOST_ITERATIONS, DecodeSide, HeldSide, allocated, held, settled


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The two sides of one placement.

    Attributes:
      encode, decode: their pipelines.
      move: link that carries keys and values from one to the other.
      encode_replicas, decode_replicas: copies of each side (disaggregated; WAA has one of each).
    """

    encode: Pipeline
    decode: Pipeline
    move: Link
    encode_replicas: int = 1
    decode_replicas: int = 1


def evaluate_waa(
    split: Split,
    lengths: Lengths,
    conditions: Conditions,
    encode_batch: Ints,
    most_decode_rows: Ints,
    decode_micro_batches: Ints | int = 1,
    *,
    memory: MemoryModel | None = None,
    padding: Padding | None = None,
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates under saturation: the slower side sets the pace.

    Args:
      encode_batch: int64 [P]: B_E.
      most_decode_rows: int64 [P]: expected rows that decode may grow to, on each of its replicas; under `padding`
        those that it is held at, from which the rungs follow.
      decode_micro_batches: int64 [P]: m_D.
      memory, padding, rate_rps, with_tpot: as in `evaluate_rra`.

    Returns:
      Points, refused beyond the rows that costs were tabulated for; under `padding` also those that
      `held` refuses. Calls of a batch pass several encode stages one behind
      the other; counted is the whole batch on each, the worst case. Their `decode_iterations` are those of one encode
      cycle, their `decode_batch` is the mean of residents (of one replica), and their memory lists the stages of
      encode, then those of decode. A request that joins waits for the running iteration: a whole one is counted, the
      worst case.
    """
    batch, caps, parts = (
        np.ravel(column).astype(np.int64)
        for column in np.broadcast_arrays(encode_batch, most_decode_rows, decode_micro_batches)
    )
    beyond = batch > split.encode.most_rows
    batch = np.minimum(batch, split.encode.most_rows)
    path_s, moved_s, encode_rps = encode_side(split, lengths, padding, batch)
    side: DecodeSide
    if padding is None:
        side = settled(split.decode, split.decode_replicas, lengths, encode_rps, caps, parts)
    else:
        side = held(split.decode, split.decode_replicas, lengths, conditions, padding, encode_rps, batch, caps, parts)
        beyond |= side.refused
    iteration_s, throughput = side.iteration_s, np.minimum(encode_rps, side.most_rps)
    per_replica = throughput / split.decode_replicas
    admitted_s = batch / np.maximum(per_replica, 1e-300)
    joined_s = path_s + moved_s
    if isinstance(side, HeldSide):
        # As many batches as there are buffers for are always there. A prompt of the last joins, on average, when half
        # of its own batch has; the iteration before that is part of the wait.
        there = split.encode_replicas * (most_batches(len(split.encode.stages)) - 0.5) * batch
        joined_s = np.where(side.full, np.maximum(joined_s, there / throughput - iteration_s), joined_s)

    def service(steps: Ints) -> Floats:
        through = joined_s + (steps[:, None] + 1) * iteration_s
        return np.where(steps[:, None] == 0, path_s, through)

    first = path_s if lengths.first_token == "encode" else service(np.array([1]))[0]
    wait_s = batch / throughput
    latency, ttft, tpot = percentiles(lengths, conditions, service, first, wait_s, throughput, rate_rps, with_tpot)
    iterations = np.clip(np.ceil(admitted_s / np.maximum(iteration_s, 1e-300) - 1e-9), 1, MOST_ITERATIONS)
    iterations = iterations.astype(np.int64)
    if isinstance(side, HeldSide):
        max_rows, tokens = side.max_rows, side.tokens
    else:
        joining = np.maximum(per_replica * iterations * iteration_s, batch)
        max_rows, tokens = allocated(lengths, conditions, joining, iterations)
    points = Points(
        encode_batch=batch,
        decode_iterations=iterations,
        throughput_rps=throughput,
        latency_s=latency,
        ttft_s=ttft,
        tpot_s=tpot,
        period_s=wait_s,
        encode_s=path_s,
        decode_phase_s=iterations * iteration_s,
        decode_batch=side.rows,
        max_rows=max_rows,
        memory_bytes=_memory(split, lengths, conditions, memory, batch, max_rows, tokens, padding),
    )
    return refuse(points, beyond)


def encode_side(split: Split, lengths: Lengths, padding: Padding | None, batch: Ints) -> tuple[Floats, Floats, Floats]:
    """Of batches [P]: seconds through all stages, of the hand-over, and requests per second of all replicas."""
    stages_s = split.encode.encode_s(batch.astype(np.float64))
    moved_s = move_s(split.move, split.encode, lengths, padding, batch)
    # The hand-over is double-buffered, so it runs beside the next batch and limits the cycle only where it is slower.
    encode_rps = split.encode_replicas * batch / np.maximum(stages_s.max(axis=0), moved_s)
    return stages_s.sum(axis=0), moved_s, encode_rps


def move_s(link: Link, pipeline: Pipeline, lengths: Lengths, padding: Padding | None, batch: Ints) -> Floats:
    """float64 [P]: keys and values of a batch from the busiest encode device, in the shapes of the calls."""
    busiest = max(stage.layers * stage.unit.cache_token_bytes for stage in pipeline.stages)
    return np.asarray(link.transfer_s(busiest * moved_tokens(padding, lengths, pipeline.most_rows)[batch]), np.float64)


def _memory(
    split: Split,
    lengths: Lengths,
    conditions: Conditions,
    memory: MemoryModel | None,
    batch: Ints,
    max_rows: Ints,
    tokens: Floats,
    padding: Padding | None,
) -> Floats:
    """Either side may hold the buffers: batches on their way, each prompt as long as the longest."""
    most, longest = lengths.workload.most_tokens, lengths.workload.most_input
    call_rows = batch
    if padding is not None:
        call_rows = np.minimum(batch, encode_call_rows(split.encode.most_rows, padding.max_prompt_tokens))
    if memory is not None:
        longest = max(longest, memory.max_prompt_tokens)
    encode = candidate_bytes(split.encode, conditions, memory, "encode", max_rows, call_rows, tokens, most)
    decode = candidate_bytes(split.decode, conditions, memory, "decode", max_rows, call_rows, tokens, most)
    stages = (*split.encode.stages, *split.decode.stages)
    held = np.array([stage.layers * stage.unit.cache_token_bytes for stage in stages], np.float64)
    return np.concatenate([encode, decode]) + buffered_tokens(1, longest) * batch * held[:, None]


def waa_split(
    unit: UnitCosts, lengths: Lengths, layers: int, devices: int, encode_batch: int, decode_rows: int, by: str
) -> int:
    """Devices that encode, of `devices` alike: the split that WAA-C ("computation") or WAA-M ("memory") would choose.

    Computation: seconds of work per request on each side are shared evenly. Memory: bytes per device are; both sides
    hold all weights. The search's own split is free and judged by throughput instead.
    """
    if devices < 2:
        raise ValueError(f"devices: {devices} cannot be split; give at least 2")
    context = residents(lengths, 1).context[0]
    if by == "computation":
        encode = layers * float(unit.encode_s[encode_batch]) / encode_batch
        column = np.array([np.interp(context, unit.contexts, unit.decode_s[:, decode_rows])])
        decode = layers * float(column[0]) * lengths.mean_decode / decode_rows
    elif by == "memory":
        weights = layers * unit.weights_bytes + unit.embed_bytes + unit.head_bytes
        token_bytes = layers * unit.cache_token_bytes
        encode = weights + 2 * encode_batch * lengths.mean_input * token_bytes
        decode = weights + decode_rows * float(context) * token_bytes
    else:
        raise ValueError(f"by: {by!r} is unknown; choose computation or memory")
    counts = np.arange(1, devices)
    return int(counts[np.argmin(np.maximum(encode / counts, decode / (devices - counts)))])
