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
from solver.plan.under_way import BUFFERS
from solver.simulate.costs import Pipeline, UnitCosts
from solver.simulate.iteration import iterations_s
from solver.simulate.latency import percentiles
from solver.simulate.lengths import Lengths, residents
from solver.simulate.memory import MemoryModel, candidate_bytes
from solver.simulate.points import Conditions, Points, refuse
from solver.simulate.quantiles import occupancy, resident_quantile
from solver.simulate.rra import token_quantile

# Cycles whose iterations are told apart in the distribution of residents; longer ones are alike.
_MOST_ITERATIONS = 4096


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
    rate_rps: float | None = None,
    with_tpot: bool = True,
) -> Points:
    """Predicts P candidates under saturation: the slower side sets the pace.

    Args:
      encode_batch: int64 [P]: B_E.
      most_decode_rows: int64 [P]: expected rows that decode may grow to, on each of its replicas.
      decode_micro_batches: int64 [P]: m_D.
      memory, rate_rps, with_tpot: as in `evaluate_rra`.

    Returns:
      Points, refused beyond the rows that costs were tabulated for. Their `decode_iterations` are those of one encode
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
    stages_s = split.encode.encode_s(batch.astype(np.float64))
    move_s = split.move.transfer_s(np.asarray(_moved_bytes(split.encode, lengths) * batch, np.float64))
    # The hand-over is double-buffered, so it runs beside the next batch and limits the cycle only where it is slower.
    cycle_s = np.maximum(stages_s.max(axis=0), move_s)
    encode_rps = split.encode_replicas * batch / cycle_s
    rows, iteration_s, decode_rps = _decode_side(split, lengths, encode_rps, caps, parts)
    throughput = np.minimum(encode_rps, decode_rps)
    per_replica = throughput / split.decode_replicas
    admitted_s = batch / np.maximum(per_replica, 1e-300)
    path_s = stages_s.sum(axis=0)

    def service(steps: Ints) -> Floats:
        through = path_s + move_s + (steps[:, None] + 1) * iteration_s
        return np.where(steps[:, None] == 0, path_s, through)

    first = path_s if lengths.first_token == "encode" else service(np.array([1]))[0]
    wait_s = batch / throughput
    latency, ttft, tpot = percentiles(lengths, conditions, service, first, wait_s, throughput, rate_rps, with_tpot)
    iterations = np.clip(np.ceil(admitted_s / np.maximum(iteration_s, 1e-300) - 1e-9), 1, _MOST_ITERATIONS)
    iterations = iterations.astype(np.int64)
    joining = np.maximum(per_replica * iterations * iteration_s, batch)
    max_rows, tokens = _allocated(lengths, conditions, joining, iterations)
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
        decode_batch=rows,
        max_rows=max_rows,
        memory_bytes=_memory(split, lengths, conditions, memory, batch, max_rows, tokens),
    )
    return refuse(points, beyond)


def _moved_bytes(pipeline: Pipeline, lengths: Lengths) -> float:
    """Keys and values of a mean prompt that the busiest encode device sends."""
    busiest = max(stage.layers * stage.unit.cache_token_bytes for stage in pipeline.stages)
    return busiest * lengths.mean_input


def _decode_side(
    split: Split, lengths: Lengths, encode_rps: Floats, caps: Ints, parts: Ints
) -> tuple[Floats, Floats, Floats]:
    """Residents, iteration time and capacity of decode, [P] each (rows of one replica, capacity of all).

    Rows grow from an empty side until as many end as come, so of several balances the smallest number of rows counts
    (T_D(b) / b need not fall on a measured profile). Where none is reached the side runs at its best number of rows.
    """
    rows, seconds, capacity = (np.zeros(caps.size) for _ in range(3))
    mean = lengths.mean_decode
    context = residents(lengths, 1).context[:1]
    for part in np.unique(parts):
        where = np.flatnonzero(parts == part)
        most = min(int(caps[where].max()), split.decode.most_rows * int(part))
        grid = np.arange(1, most + 1, dtype=np.float64)
        table_s = iterations_s(split.decode, grid[None, :], context, np.array([float(part)])).apart_s[0]
        ending = split.decode_replicas * grid / (max(mean, 1e-300) * table_s)
        best = np.maximum.accumulate(ending)
        at_best = np.maximum.accumulate(np.where(ending >= best, np.arange(most), 0))
        cap = np.minimum(caps[where], most) - 1
        capacity[where] = best[cap]
        # The first whole number of rows that keeps up, and the straight line from the one below.
        reached = np.minimum(np.searchsorted(best, encode_rps[where]), at_best[cap])
        below = np.maximum(reached - 1, 0)
        first_rows, first_s = np.where(reached > 0, grid[below], 0.0), np.where(reached > 0, table_s[below], 0.0)
        step_s = table_s[reached] - first_s
        # b = a (s0 + (b - b0) ds), with a the rows that come per second of an iteration.
        coming = np.minimum(encode_rps[where], capacity[where]) * mean / split.decode_replicas
        slope = 1 - coming * step_s
        solved = (coming * (first_s - first_rows * step_s)) / np.where(np.abs(slope) < 1e-12, 1.0, slope)
        rows[where] = np.clip(np.where(np.abs(slope) < 1e-12, grid[reached], solved), first_rows, grid[reached])
        seconds[where] = first_s + (rows[where] - first_rows) * step_s
    return rows, seconds, capacity


def _allocated(lengths: Lengths, conditions: Conditions, joining: Floats, iterations: Ints) -> tuple[Ints, Floats]:
    """Rows and cached tokens to allocate: residents of 2.2 with N iterations and `joining` requests a cycle.

    Where an iteration takes longer than a batch, N is 1 and several batches join at once.
    """
    max_rows, tokens = np.zeros(joining.size, np.int64), np.zeros(joining.size)
    for count in np.unique(iterations):
        where = iterations == count
        held = occupancy(lengths, int(count), conditions.delivery == "phase+1")
        max_rows[where] = resident_quantile(joining[where], held, conditions.overflow)
        found = residents(lengths, int(count))
        tokens[where] = token_quantile(found.tokens, found.tokens_variance, joining[where], conditions.overflow)
    return max_rows, tokens


def _memory(
    split: Split,
    lengths: Lengths,
    conditions: Conditions,
    memory: MemoryModel | None,
    batch: Ints,
    max_rows: Ints,
    tokens: Floats,
) -> Floats:
    """Either side may hold the buffers: batches on their way, each prompt as long as the longest."""
    most = lengths.workload.most_tokens
    encode = candidate_bytes(split.encode, conditions, memory, "encode", max_rows, batch, tokens, most)
    decode = candidate_bytes(split.decode, conditions, memory, "decode", max_rows, np.ones_like(batch), tokens, most)
    stages = (*split.encode.stages, *split.decode.stages)
    held = np.array([stage.layers * stage.unit.cache_token_bytes for stage in stages], np.float64)
    buffers = float(BUFFERS) * batch * lengths.workload.most_input * held[:, None]
    return np.concatenate([encode, decode]) + buffers


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
