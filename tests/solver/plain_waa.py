"""WAA in compiled shapes by plain loops over rungs, moments and requests: what the search is compared with.

Slow on purpose, and sharing no code with the closed form: rungs come from the plan's own buckets, calls from the rule
that packs them, and every mean is a sum written out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from solver.facts.workload import Workload
from solver.plan.buckets import Buckets, attended_tokens
from solver.plan.packing import pack
from solver.plan.plan import make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.costs import Pipeline
from solver.simulate.points import Conditions
from solver.simulate.waa import Split
from tests.solver.plain_rra import NORMAL_QUANTILE, decode_stage, straight

MOMENTS, LONGEST_CYCLE, SPARE = 8, 4096, 1.1


@dataclasses.dataclass(frozen=True)
class Plain:
    """What is predicted of one candidate."""

    throughput_rps: float
    latency_s: float
    ttft_s: float
    rows: float
    max_rows: int


class PlainWaa:
    """One split under one workload.

    Args:
      emits_first: the encode phase emits the first token.
      cache_tokens, longest_prompt: of the plan.
      parts: m_D.
    """

    def __init__(
        self,
        split: Split,
        workload: Workload,
        emits_first: bool,
        conditions: Conditions,
        cache_tokens: int,
        longest_prompt: int,
        parts: int,
    ) -> None:
        self.split, self.conditions, self.parts = split, conditions, parts
        self.emits_first, self.cache_tokens, self.longest_prompt = emits_first, cache_tokens, longest_prompt
        self.requests = [
            (int(i), int(s) - emits_first, float(p))
            for i, s, p in zip(workload.input_tokens, workload.output_tokens, workload.probability, strict=True)
        ]
        self.most = max(d for _, d, _ in self.requests)
        self.alive = [min(1.0, sum(p for _, d, p in self.requests if d >= k)) for k in range(self.most + 1)]
        self.mean = sum(self.alive[1:])

    def candidate(self, batch: int, planned: int) -> Plain | None:
        """None where it is refused."""
        sides, mean = self.split, self.mean / self.split.decode_replicas
        if batch > sides.encode.most_rows:
            return None
        cycle = 1
        if self.mean > 0:
            cycle = min(max(math.ceil(batch * self.mean / planned - 1e-9), 1), LONGEST_CYCLE)
        joining = max(planned * cycle / self.mean if self.mean else 0.0, float(batch))
        max_rows = self.allocated(joining, cycle)
        most = sides.decode.most_rows * self.parts
        if max(planned, batch) > most:
            return None
        path_s, move_s, sent = self.encode(batch)
        joined_s = path_s + move_s
        full_s = self.iteration_s(planned, [(1.0, 0.0, 1.0)], planned)
        if SPARE * planned / full_s <= sent * mean:
            if batch > planned:
                return None
            throughput, rows, iteration_s, max_rows = planned / (mean * full_s), float(planned), full_s, planned
            there = sides.encode_replicas * (1.5 + len(sides.encode.stages)) * batch
            joined_s = max(joined_s, there / throughput - iteration_s)
        else:
            if max_rows > most:
                return None
            moments = self.moments(cycle)
            high_s = self.iteration_s(planned, moments, max_rows)
            low_s = self.iteration_s(planned - 1, moments, max_rows) if planned > 1 else 0.0
            if planned / high_s < sent * mean or (planned > 1 and (planned - 1) / low_s >= sent * mean):
                return None
            throughput = sent
            # b = a T(b) on the straight line between both.
            a = sent * mean
            rows = a * (low_s - (planned - 1) * (high_s - low_s)) / (1 - a * (high_s - low_s))
            rows = min(max(rows, planned - 1.0), float(planned))
            iteration_s = low_s + (rows - planned + 1) * (high_s - low_s)
        lasting = self.percentile()
        finished = path_s if lasting == 0 else joined_s + (lasting + 1) * iteration_s
        first = path_s if self.emits_first else joined_s + 2 * iteration_s
        return Plain(throughput, finished, first, rows, max_rows)

    def percentile(self) -> int:
        reached = 0.0
        for d in sorted({d for _, d, _ in self.requests}):
            reached += sum(p for _, other, p in self.requests if other == d)
            if reached >= self.conditions.latency_percentile / 100 - 1e-9:
                return d
        return self.most

    def encode(self, batch: int) -> tuple[float, float, float]:
        """Path, hand-over, and requests per second; tokens of every way that a batch can be made up of."""
        stages = [straight(row, batch) for row in self.split.encode.encode_rows_s]
        held = max(s.layers * s.unit.cache_token_bytes for s in self.split.encode.stages)
        move_s = float(self.split.move.transfer_s(held * self.call_tokens(batch)))
        return sum(stages), move_s, self.split.encode_replicas * batch / max(*stages, move_s)

    def call_tokens(self, batch: int) -> float:
        buckets = self.buckets(batch, batch)
        shares: dict[int, float] = {}
        for i, _, p in self.requests:
            rung = min(rung for rung in buckets.encode_tokens if rung >= i)
            shares[rung] = shares.get(rung, 0.0) + p
        total = 0.0
        for drawn in itertools.combinations_with_replacement(sorted(shares), batch):
            ways = math.factorial(batch)
            chance = 1.0
            for rung in set(drawn):
                ways //= math.factorial(drawn.count(rung))
                chance *= shares[rung] ** drawn.count(rung)
            total += ways * chance * sum(c.rows_bucket * c.tokens_bucket for c in pack(drawn, buckets))
        return total

    def buckets(self, encode_rows: int, max_rows: int) -> Buckets:
        stages = (StageSpec("encode", (0, 1), (0,), 1), StageSpec("decode", (0, 1), (1,), 1))
        schedule = Schedule("waa", encode_rows, 1, 1, max_rows, stages, 1, encode_rows)
        return make_buckets(schedule, self.cache_tokens, self.longest_prompt)

    def allocated(self, joining: float, cycle: int) -> int:
        """The quantile of residents where most are there; a whole batch at least."""
        there = [self.alive[k] for k in range(1, self.most + 1, cycle)] or [0.0]
        mean, variance = sum(there), sum(h * (1 - h) for h in there)
        third = sum(h * (1 - h) * (1 - 2 * h) for h in there)
        z = NORMAL_QUANTILE[self.conditions.overflow]
        wanted = joining * mean - 0.5
        if variance > 0:
            skewness = third / math.sqrt(joining) / variance**1.5
            wanted += math.sqrt(joining * variance) * (z + (z * z - 1) * skewness / 6)
        fewest = max(math.ceil(joining * mean - 1e-9), math.ceil(joining))
        most = max(fewest, math.ceil(joining) * sum(h > 0 for h in there))
        return int(min(max(math.ceil(wanted - 1e-9), fewest), most))

    def moments(self, cycle: int) -> list[tuple[float, float, float]]:
        """Of each part of a cycle: mean and variance of residents per mean row, and how long it is."""
        if self.mean == 0:
            return [(1.0, 0.0, 1.0)]
        count = min(cycle, MOMENTS)
        starts = [part * cycle // count for part in range(count)] + [cycle]
        found = []
        for first, end in itertools.pairwise(starts):
            mean = variance = 0.0
            for u in range(first + 1, end + 1):
                there = [self.alive[k] for k in range(u, self.most + 1, cycle)]
                mean += sum(there)
                variance += sum(h * (1 - h) for h in there)
            size = (end - first) * self.mean / cycle
            found.append((mean / size, variance / size, (end - first) / cycle))
        return found

    def iteration_s(self, rows: int, moments: list[tuple[float, float, float]], max_rows: int) -> float:
        buckets = self.buckets(1, max_rows)
        total = 0.0
        below = 0.0
        for rung in buckets.decode_rows:
            up_to = sum(weight * _below((rung + 0.5 - rows * mean) / max(math.sqrt(rows * variance), 1e-9))
                        for mean, variance, weight in moments)  # fmt: skip
            if rung == max_rows:
                up_to = 1.0
            reached = 0.0
            for tokens in buckets.cache_tokens:
                all_reach = self.within(tokens) ** max(rows, 1) if tokens < self.cache_tokens else 1.0
                attended = attended_tokens(tokens, 1, rung == max_rows, buckets.cache_tokens)
                total += (up_to - below) * (all_reach - reached) * self.call_s(rung, attended)
                reached = all_reach
            below = up_to
        return total

    def within(self, tokens: int) -> float:
        """Share of residents that attend to no more positions, the coming one included."""
        shares = [(p, d, sum(i + k <= tokens for k in range(1, d + 1))) for i, d, p in self.requests]
        return sum(p * fits for p, _, fits in shares) / self.mean if self.mean else 1.0

    def call_s(self, rung: int, attended: int) -> float:
        pipeline: Pipeline = self.split.decode
        stage = [decode_stage(t, pipeline.contexts, rung / self.parts, attended) for t in pipeline.decode_rows_s]
        if len(stage) == 1:
            return stage[0] + pipeline.phase_s
        return max(self.parts * max(stage), sum(stage) + pipeline.return_s + pipeline.phase_s)


def _below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def grid(plain: PlainWaa, most_batch: int, most_rows: int) -> dict[tuple[int, int], Plain | None]:
    """Every candidate."""
    pairs = itertools.product(range(1, most_batch + 1), range(1, most_rows + 1))
    return {pair: plain.candidate(*pair) for pair in pairs}


def figures(found: dict[tuple[int, int], Plain | None], name: str) -> np.ndarray:
    return np.array([getattr(plain, name) for plain in found.values() if plain is not None])
