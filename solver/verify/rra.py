"""RRA worked out in plain loops: period, throughput, latency, time to first token and per token of one candidate.

Every iteration of a phase is looked up by itself, every age of a request is walked through. Compiled shapes (padded
profiles) are sampled: prompts are packed by the runner's rule, residents drawn age by age.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.facts.workload import Workload
from solver.plan.buckets import Buckets, attended_tokens, round_up
from solver.plan.packing import pack
from solver.plan.schedule import StageSpec
from solver.verify.stage_times import TOKEN_BYTES, Setting, StageTimes, link_between, transfer_s

# Phases drawn: fewer for large batches, whose sums spread less.
_MOST_DRAWN, _LEAST_DRAWN, _PROMPTS_DRAWN = 300, 30, 6000
_SEED = 11


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What varies: B_E, N_D, and into how many micro-batches both phases are cut."""

    encode_batch: int
    decode_iterations: int
    encode_parts: int
    decode_parts: int


@dataclasses.dataclass(frozen=True)
class Derived:
    """Figures of one replica, from the start of encoding; percentiles as asked."""

    throughput_rps: float
    latency_s: float
    ttft_s: float
    tpot_s: float
    period_s: float
    encode_s: float
    decode_phase_s: float
    decode_batch: float


@dataclasses.dataclass(frozen=True)
class Asked:
    """How requests are served and at which percentiles they are judged."""

    latency_percentile: float
    ttft_percentile: float
    tpot_percentile: float
    compaction: str
    delivery: str


class Answers:
    """A workload by decode iterations: who is still there at iteration k, and with how many prompt tokens.

    Attributes:
      share: d -> probability of exactly d iterations.
      alive, prompts: [k]: P(D >= k) and E[I; D >= k], k = 1 .. most; entry 0 is unused.
    """

    def __init__(self, workload: Workload, first_token: str) -> None:
        self.workload = workload
        self.hidden = 1 if first_token == "encode" else 0
        self.share: dict[int, float] = {}
        tokens: dict[int, float] = {}
        for prompt, output, p in zip(
            workload.input_tokens.tolist(), workload.output_tokens.tolist(), workload.probability.tolist(), strict=True
        ):
            d = output - self.hidden
            self.share[d] = self.share.get(d, 0.0) + p
            tokens[d] = tokens.get(d, 0.0) + p * prompt
        self.most = max(self.share)
        self.alive, self.prompts = [0.0] * (self.most + 2), [0.0] * (self.most + 2)
        for k in range(self.most, 0, -1):
            self.alive[k] = self.alive[k + 1] + self.share.get(k, 0.0)
            self.prompts[k] = self.prompts[k + 1] + tokens.get(k, 0.0)


class Line:
    """A pipeline of stages that hold their layers for both phases; stages that cost the same are worked out once."""

    def __init__(self, setting: Setting, stages: tuple[StageSpec, ...]) -> None:
        self.setting = setting
        self.back_s = 0.0
        self._distinct: dict[tuple[object, ...], tuple[StageTimes, int]] = {}
        self._calls: dict[tuple[tuple[object, ...], int, int], float] = {}
        devices = setting.cluster.devices()
        for index, stage in enumerate(stages):
            last = index == len(stages) - 1
            following = None if last else stages[index + 1]
            link = None if following is None else link_between(setting.cluster, stage, following)
            size = stage.layers[1] - stage.layers[0]
            key = (devices[stage.devices[0]].kind, stage.tensor, size, index == 0, last, link)
            times, count = self._distinct.get(key, (StageTimes(setting, stage, index == 0, last, following), 0))
            self._distinct[key] = (times, count + 1)
        if len(stages) > 1:
            self.back_s = transfer_s(link_between(setting.cluster, stages[-1], stages[0]), TOKEN_BYTES)
        self.phase_s = max(times.phase_s for times, _ in self._distinct.values())

    def encode_s(self, batch: float, parts: int) -> float:
        """T_E: fill, the bottleneck's turn for every further part, drain."""
        each = [(times.encode_s(batch / parts), count) for times, count in self._distinct.values()]
        return sum(s * count for s, count in each) + (parts - 1) * max(s for s, _ in each)

    def calls_s(self, calls: list[tuple[int, int]], parts: int) -> float:
        """T_E where a batch goes in these calls of compiled shapes (rows, tokens)."""
        each = [
            (sum(self._call_s(key, rows, tokens) for rows, tokens in calls), count)
            for key, (_, count) in self._distinct.items()
        ]
        return sum(s / parts * count for s, count in each) + (parts - 1) * max(s / parts for s, _ in each)

    def _call_s(self, key: tuple[object, ...], rows: int, tokens: int) -> float:
        """The same few shapes come again and again."""
        shape = (key, rows, tokens)
        if shape not in self._calls:
            self._calls[shape] = self._distinct[key][0].call_s(rows, tokens)
        return self._calls[shape]

    def iteration_s(self, rows: float, context: float, parts: int) -> tuple[float, float]:
        """(T_D, b): to the next iteration's start, and what the last one takes longer."""
        each = [(times.decode_s(rows / parts, context), count) for times, count in self._distinct.values()]
        slowest = max(s for s, _ in each)
        path = sum(s * count for s, count in each) + self.back_s
        return max(parts * slowest, path), min(path - slowest, (parts - 1) * slowest)


def derive(line: Line, answers: Answers, candidate: Candidate, asked: Asked, buckets: Buckets | None) -> Derived:
    """Works one candidate out.

    Args:
      line: of one replica.
      answers: of the workload.
      asked: percentiles and how tokens are delivered.
      buckets: the compiled shapes, where the profile is of such; None: exact sizes.
    """
    n, batch = candidate.decode_iterations, candidate.encode_batch
    rows, tokens, _ = _residents(answers, n)
    # Seconds of the decode phase up to each iteration, and what the last one takes longer.
    until, drain = [line.phase_s], []
    if buckets is None:
        encode_s = line.encode_s(batch, candidate.encode_parts)
        context = _contexts(rows, tokens, asked.compaction)
        for u in range(n):
            alive = batch * (rows[0] if asked.compaction == "phase" else rows[u])
            step, tail = line.iteration_s(alive, context[u], candidate.decode_parts)
            until.append(until[-1] + step)
            drain.append(tail)
    else:
        encode_s = _padded_encode_s(line, answers.workload, candidate, buckets)
        step, tail = _padded_iteration_s(line, answers, candidate, buckets)
        until += [line.phase_s + step * (u + 1) for u in range(n)]
        drain = [tail] * n
    decode_s = until[n] + drain[-1]
    period_s = encode_s + decode_s

    def latency_s(d: int) -> float:
        if d == 0:
            return encode_s
        periods = -(-d // n)
        if asked.delivery == "iteration":
            u = d - (periods - 1) * n
            return (periods - 1) * period_s + encode_s + until[u] + drain[u - 1]
        return (periods + (asked.delivery == "phase+1")) * period_s

    first_s = encode_s if answers.hidden else latency_s(1)
    several = [(d, p) for d, p in answers.share.items() if d + answers.hidden >= 2]
    spans = [((latency_s(d) - first_s) / (d + answers.hidden - 1), p) for d, p in several]
    lengths = [(float(d), p) for d, p in answers.share.items()]
    return Derived(
        throughput_rps=batch / period_s,
        latency_s=latency_s(int(_percentile(lengths, asked.latency_percentile))),
        ttft_s=first_s,
        tpot_s=_percentile(spans, asked.tpot_percentile) if spans else 0.0,
        period_s=period_s,
        encode_s=encode_s,
        decode_phase_s=decode_s,
        decode_batch=batch * rows[0],
    )


def rows_of(answers: Answers, candidate: Candidate) -> tuple[float, float]:
    """Mean and variance of the rows that are resident at the start of a decode phase."""
    rows, _, variance = _residents(answers, candidate.decode_iterations)
    return candidate.encode_batch * rows[0], candidate.encode_batch * variance


def _residents(answers: Answers, n: int) -> tuple[list[float], list[float], float]:
    """Per admitted request: rows and tokens at iteration 1 .. n of a phase, and Var[n_1].

    At its k-th iteration a request has its prompt and k - 1 tokens behind it, and stands at place (k - 1) mod n + 1.
    """
    rows, tokens = [0.0] * n, [0.0] * n
    for k in range(1, answers.most + 1):
        rows[(k - 1) % n] += answers.alive[k]
        tokens[(k - 1) % n] += answers.prompts[k] + (k - 1) * answers.alive[k]
    return rows, tokens, sum(left * (1 - left) for left in answers.alive[1::n])


def _contexts(rows: list[float], tokens: list[float], compaction: str) -> list[float]:
    """Mean tokens of a row at each iteration; rows that stay to the end of the phase go on growing."""
    if compaction == "phase":
        start = tokens[0] / rows[0] if rows[0] > 0 else 0.0
        return [start + u for u in range(len(rows))]
    context: list[float] = []
    for row, token in zip(rows, tokens, strict=True):
        context.append(token / row if row > 0 else context[-1])
    return context


def _percentile(values: list[tuple[float, float]], percent: float) -> float:
    """The smallest value that `percent` of the weight does not exceed."""
    total, below = sum(weight for _, weight in values), 0.0
    for value, weight in sorted(values):
        below += weight
        if below >= (percent / 100 - 1e-9) * total:
            return value
    return max(value for value, _ in values)


def _draws(candidate: Candidate) -> int:
    return min(_MOST_DRAWN, max(_LEAST_DRAWN, _PROMPTS_DRAWN // candidate.encode_batch))


def _padded_encode_s(line: Line, workload: Workload, candidate: Candidate, buckets: Buckets) -> float:
    """Mean over drawn batches, packed by the runner's rule; long prompts go in chunks of the largest call."""
    rng = np.random.default_rng(_SEED)
    longest = buckets.encode_tokens[-1]
    below = np.cumsum(workload.probability)
    total, count = 0.0, _draws(candidate)
    for _ in range(count):
        places = np.searchsorted(below, rng.random(candidate.encode_batch) * below[-1], side="right")
        drawn = workload.input_tokens[places].tolist()
        calls = [(1, longest) for length in drawn if length > longest for _ in range(math.ceil(length / longest))]
        whole = [length for length in drawn if length <= longest]
        calls += [(call.rows_bucket, call.tokens_bucket) for call in pack(whole, buckets)]
        total += line.calls_s(calls, candidate.encode_parts)
    return total / count


def _padded_iteration_s(line: Line, answers: Answers, candidate: Candidate, buckets: Buckets) -> tuple[float, float]:
    """Mean (T_D, b) over drawn phases: residents of every age, the rung of rows that holds them, and the rung of
    positions that the longest may reach by the end of the phase."""
    rng = np.random.default_rng(_SEED + 1)
    n, workload = candidate.decode_iterations, answers.workload
    steps = workload.output_tokens - answers.hidden
    below = np.cumsum(workload.probability)
    ages = np.arange(max(1, -(-answers.most // n)))[:, None]
    seen: dict[tuple[int, int], tuple[float, float]] = {}
    total = [0.0, 0.0]
    count = _draws(candidate)
    for _ in range(count):
        drawn = np.searchsorted(below, rng.random((len(ages), candidate.encode_batch)) * below[-1], side="right")
        stays = steps[drawn] > ages * n
        alive = int(stays.sum())
        ends = workload.input_tokens[drawn] + np.minimum((ages + 1) * n, answers.most)
        reach = int(ends[stays].max(initial=1))
        rows = round_up(min(max(alive, 1), buckets.decode_rows[-1]), buckets.decode_rows)
        reach = min(reach, buckets.cache_tokens[-1])
        tokens = attended_tokens(reach, n, rows == buckets.decode_rows[-1], buckets.cache_tokens)
        shape = (rows, tokens)
        if shape not in seen:
            seen[shape] = line.iteration_s(rows, tokens, candidate.decode_parts)
        step, tail = seen[shape]
        total[0] += step
        total[1] += tail
    return total[0] / count, total[1] / count
