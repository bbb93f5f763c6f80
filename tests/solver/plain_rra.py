"""RRA by plain loops over the formulas of scheduling.md, 2.2: what searches are compared with, sharing no code.

Slow on purpose: sums run over requests, ages and iterations one by one, so that each line is a line of the derivation.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.facts.workload import Workload
from solver.simulate.costs import Pipeline
from solver.simulate.points import Conditions

NORMAL_QUANTILE = {1e-3: 3.090232306167813, 1e-2: 2.3263478740408408}


@dataclasses.dataclass(frozen=True)
class Plain:
    """What is predicted of one candidate."""

    throughput_rps: float
    latency_s: float
    ttft_s: float
    tpot_s: float
    period_s: float
    encode_s: float
    peak_rows: float
    memory_bytes: tuple[float, ...]


def straight(table: np.ndarray, at: float) -> float:
    """Linear between whole positions."""
    below = min(int(at), len(table) - 2)
    return float(table[below] + (table[below + 1] - table[below]) * (at - below))


def decode_stage(table: np.ndarray, knots: np.ndarray, rows: float, context: float) -> float:
    """[contexts, rows] at fractional rows and a context, constant beyond the knots."""
    columns = np.array([straight(column, rows) for column in table])
    return float(np.interp(context, knots, columns))


def plain_rra(
    workload: Workload,
    emits_first: bool,
    pipeline: Pipeline,
    conditions: Conditions,
    encode_batch: int,
    iterations: int,
    encode_micro_batches: int = 1,
    micro_batches: int = 1,
) -> Plain | None:
    """One candidate; None where its rows go beyond what costs were tabulated for."""
    requests = [
        (int(i), int(s) - (1 if emits_first else 0), float(p))
        for i, s, p in zip(workload.input_tokens, workload.output_tokens, workload.probability, strict=True)
    ]
    rows, context, token_mean, token_variance = _residents(requests, encode_batch, iterations)
    if max(rows) > pipeline.most_rows * micro_batches or encode_batch > pipeline.most_rows * encode_micro_batches:
        return None
    run = rows
    if conditions.compaction == "phase":  # who ends goes on, row and context, until the phase does
        run, context = [rows[0]] * iterations, [context[0] + u for u in range(iterations)]

    encode = [straight(row, encode_batch / encode_micro_batches) for row in pipeline.encode_rows_s]
    encode_s = sum(encode) + (encode_micro_batches - 1) * max(encode)
    steps, drains = [], []
    for n, c in zip(run, context, strict=True):
        stage = [decode_stage(t, pipeline.contexts, n / micro_batches, c) for t in pipeline.decode_rows_s]
        back = pipeline.return_s if len(stage) > 1 else 0.0
        steps.append(max(micro_batches * max(stage), sum(stage) + back))
        drains.append(min(sum(stage) + back - max(stage), (micro_batches - 1) * max(stage)) + pipeline.phase_s)
    period_s = encode_s + sum(steps) + drains[-1]

    def finished_s(decode: int) -> float:
        """When the last token of a request of so many decode iterations is delivered, from the start of its encode."""
        if decode == 0:
            return encode_s
        phases = math.ceil(decode / iterations)
        if conditions.delivery != "iteration":
            return (phases + (conditions.delivery == "phase+1")) * period_s
        last = decode - (phases - 1) * iterations
        return (phases - 1) * period_s + encode_s + sum(steps[:last]) + drains[last - 1]

    def first_s() -> float:
        if emits_first:
            return encode_s
        return finished_s(1)

    lasting, reached = None, 0.0
    for length in sorted(set(workload.output_tokens)):
        reached += float(workload.probability[workload.output_tokens == length].sum())
        if reached >= conditions.latency_percentile / 100 - 1e-9:
            lasting = int(length) - (1 if emits_first else 0)
            break
    assert lasting is not None
    per_token = sorted(
        ((finished_s(d) - first_s()) / (d + emits_first - 1), p) for _, d, p in requests if d + emits_first > 1
    )
    tpot_s, total, reached = 0.0, sum(p for _, p in per_token), 0.0
    for value, p in per_token:
        reached += p
        tpot_s = value
        if reached >= conditions.tpot_percentile / 100 * total - 1e-9:
            break
    z = NORMAL_QUANTILE[conditions.overflow]
    if conditions.cache_layout == "slots":
        late = conditions.delivery == "phase+1"
        tokens = _slots(requests, encode_batch, iterations, z, late) * float(conditions.cache_tokens)
    elif conditions.compaction == "iteration":
        tokens = max(m + z * math.sqrt(v) for m, v in zip(token_mean, token_variance, strict=True))
    else:
        tokens = _phase_tokens(requests, encode_batch, iterations, z)
    memory = tuple(
        stage.layers * stage.unit.weights_bytes
        + stage.first * stage.unit.embed_bytes
        + stage.last * stage.unit.head_bytes
        + stage.layers * stage.unit.cache_token_bytes * tokens
        for stage in pipeline.stages
    )
    return Plain(encode_batch / period_s, finished_s(lasting), first_s(), tpot_s, period_s, encode_s, rows[0], memory)


def _residents(
    requests: list[tuple[int, int, float]], encode_batch: int, iterations: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """n_u, c_u, E[tok_u] and Var[tok_u] at u = 1 .. N."""
    rows, context, means, variances = [], [], [], []
    longest = max(d for _, d, _ in requests)
    for u in range(1, iterations + 1):
        alive = sum(p * ((d - u) // iterations + 1) for _, d, p in requests if d >= u)
        tokens = spread = 0.0
        for behind in range(u, longest + 1, iterations):
            first = sum(p * (i + behind - 1) for i, d, p in requests if d >= behind)
            second = sum(p * (i + behind - 1) ** 2 for i, d, p in requests if d >= behind)
            tokens += first
            spread += second - first**2
        rows.append(encode_batch * alive)
        context.append(tokens / alive if alive > 1e-15 else (context[-1] if context else 0.0))
        means.append(encode_batch * tokens)
        variances.append(max(0.0, encode_batch * spread))
    return rows, context, means, variances


def _slots(requests: list[tuple[int, int, float]], encode_batch: int, iterations: int, z: float, late: bool) -> int:
    """Rows to allocate: the quantile of a sum of binomials, normal but for Cornish and Fisher's skewness."""
    longest = max(d for _, d, _ in requests)
    held = [sum(p for _, d, p in requests if d >= behind) for behind in range(1, longest + 1, iterations)] or [0.0]
    if late and longest:
        held = [held[0], *held]
    mean = encode_batch * sum(held)
    variance = encode_batch * sum(h * (1 - h) for h in held)
    third = encode_batch * sum(h * (1 - h) * (1 - 2 * h) for h in held)
    quantile = mean - 0.5
    if variance > 1e-12:
        quantile += math.sqrt(variance) * (z + (z * z - 1) * third / variance**1.5 / 6)
    fewest = max(encode_batch, math.ceil(mean - 1e-9))
    most = max(fewest, encode_batch * sum(h > 0 for h in held))
    return min(max(math.ceil(quantile - 1e-9), fewest), most)


def _phase_tokens(requests: list[tuple[int, int, float]], encode_batch: int, iterations: int, z: float) -> float:
    """The quantile of cached tokens where each resident counts as at the end of its phase."""
    mean = variance = 0.0
    longest = max(d for _, d, _ in requests)
    for age in range(-(-longest // iterations)):
        end = (age + 1) * iterations
        first = sum(p * (i + end) for i, d, p in requests if d > age * iterations)
        second = sum(p * (i + end) ** 2 for i, d, p in requests if d > age * iterations)
        mean += encode_batch * first
        variance += encode_batch * (second - first**2)
    return mean + z * math.sqrt(max(0.0, variance))
