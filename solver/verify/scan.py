"""Looks for a plan better than the one that claims to be best: a scan over (B_E, N_D) and plain placements.

Coarse to fine: points spread evenly on a logarithmic grid, then around the best ones found, in plain loops and with
the plan's own placement first, then pipelines of equal stages. It proves nothing by itself. But whatever it finds above
the plan's bound shows that the bound is wrong, and points count only where they keep every limit with room to spare,
so that rounding convicts nobody.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.tensor_degree import tensor_degrees
from solver.facts.workload import Workload
from solver.plan.buckets import Buckets
from solver.plan.memory import memory_table
from solver.plan.plan import Plan, make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.verify.residents import rows_needed
from solver.verify.rra import Answers, Asked, Candidate, Derived, Line, derive, rows_of
from solver.verify.stage_times import Setting

_REFINED = 3
_SPARE = 1e-6
_DEVIATIONS, _EXTRA_ROWS, _MOST_COUNTED = 3.6, 3, 100_000
_OVERFLOW = 1e-3
# Tokens of one encode call of compiled shapes, at most.
_CALL_TOKENS = 8192
_COARSE = 2.0
# The planner tries no longer phases and tabulates no larger batches, so its bound speaks of none.
_MOST_ITERATIONS, _MOST_BATCH = 512, 4096


@dataclasses.dataclass(frozen=True)
class Layout:
    """Stages of one replica, how many copies, and into how many parts batches are cut."""

    stages: tuple[StageSpec, ...]
    replicas: int
    encode_parts: int
    decode_parts: int


@dataclasses.dataclass(frozen=True)
class Found:
    """The best candidate of a scan; rates over all replicas."""

    throughput_rps: float
    candidate: Candidate | None
    layout: Layout | None
    evaluated: int


def scan(
    plan: Plan, spec: ModelSpec, cluster: Cluster, setting: Setting, workload: Workload, asked: Asked, most: int
) -> Found:
    """The best of about `most` candidates, the plan's own neighbourhood among them."""
    layouts = list(_layouts(plan, spec, cluster, setting))
    scanner = _Scanner(plan, spec, cluster, setting, workload, asked)
    own = plan.schedule
    scanner.visit(layouts[0], _around(own.encode_batch, own.decode_iterations, 1.0))
    for index, layout in enumerate(layouts):
        left = most - scanner.evaluated
        if left <= 0:
            break
        scanner.search(layout, max(12, left // (len(layouts) - index)))
    return scanner.best()


class _Scanner:
    """Evaluates candidates once each and keeps the best that keeps every limit."""

    def __init__(
        self, plan: Plan, spec: ModelSpec, cluster: Cluster, setting: Setting, workload: Workload, asked: Asked
    ) -> None:
        self._plan, self._spec, self._cluster, self._setting = plan, spec, cluster, setting
        self._answers, self._asked = Answers(workload, spec.first_token), asked
        self._kinds = {device.id: cluster.kind(device.kind) for device in cluster.devices()}
        self._lines: dict[Layout, Line] = {}
        self._seen: dict[tuple[Layout, Candidate], float] = {}
        self._padded = any(profile.padded for profile in setting.profiles.values())
        # Programs of padded shapes are timed at their own sizes; nobody knows what more rows would take.
        timed = [times.decode.first[-1] for p in setting.profiles.values() if p.padded for times in p.layers]
        self._most_rows = min(timed, default=math.inf)
        self._keep = plan.margins.keep if plan.margins is not None else 1.0

    @property
    def evaluated(self) -> int:
        return len(self._seen)

    def best(self) -> Found:
        if not self._seen:
            return Found(0.0, None, None, 0)
        (layout, candidate), rate = max(self._seen.items(), key=lambda item: item[1])
        return Found(rate, candidate if rate else None, layout if rate else None, self.evaluated)

    def search(self, layout: Layout, most: int) -> None:
        """A coarse grid, then ever finer ones around the best."""
        start, factor = self.evaluated, _COARSE
        batches = [round(factor**i) for i in range(13)]
        phases = [round(factor**i) for i in range(int(math.log2(max(1, self._answers.most))) + 1)]
        grid = [(b, n) for n in phases for b in batches]
        step = max(1, round(2 * len(grid) / most))
        self.visit(layout, iter(grid[::step]))
        while factor > 1.02 and self.evaluated - start < most:
            factor = factor**0.5
            mine = [(rate, c) for (place, c), rate in self._seen.items() if place == layout]
            for _, near in sorted(mine, key=lambda item: -item[0])[:_REFINED]:
                self.visit(layout, _around(near.encode_batch, near.decode_iterations, factor))

    def visit(self, layout: Layout, points: Iterator[tuple[int, int]]) -> None:
        for batch, iterations in points:
            if not layout.encode_parts <= batch <= _MOST_BATCH or iterations > min(
                self._answers.most, _MOST_ITERATIONS
            ):
                continue
            candidate = Candidate(batch, iterations, layout.encode_parts, layout.decode_parts)
            if (layout, candidate) not in self._seen:
                self._seen[layout, candidate] = self._rate(layout, candidate)

    def _rate(self, layout: Layout, candidate: Candidate) -> float:
        """Requests per second of all replicas; 0 where a limit is not kept with room to spare."""
        if layout not in self._lines:
            self._lines[layout] = Line(self._setting, layout.stages)
        line = self._lines[layout]
        # Bytes are no rising function of rows, since ladders of buckets jump; so a few numbers of rows must all fit.
        fewest = max(candidate.encode_batch, self._rows(candidate))
        if fewest > self._most_rows:
            return 0.0
        made = [self._schedule(layout, candidate, fewest + more) for more in range(_EXTRA_ROWS)]
        shapes = [make_buckets(each, self._plan.cache_tokens, self._plan.max_prompt_tokens) for each in made]
        if not all(self._fits(*pair) for pair in zip(made, shapes, strict=True)):
            return 0.0
        buckets = shapes[0]
        found = derive(line, self._answers, candidate, self._asked, buckets if self._padded else None)
        return found.throughput_rps * layout.replicas if self._keeps(found) else 0.0

    def _keeps(self, found: Derived) -> bool:
        bounds = self._plan.bounds
        assert bounds is not None, "checked before"
        slack = self._keep * (1 + _SPARE)
        return all(
            limit is None or value * slack <= limit
            for value, limit in (
                (found.latency_s, bounds.latency_s), (found.ttft_s, bounds.ttft_s), (found.tpot_s, bounds.tpot_s)
            )
        )  # fmt: skip

    def _rows(self, candidate: Candidate) -> int:
        """As many as residents need; where counting them would take long, a few more."""
        mean, variance = rows_of(self._answers, candidate)
        if mean * self._answers.most / candidate.decode_iterations > _MOST_COUNTED:
            return math.ceil(mean + _DEVIATIONS * math.sqrt(max(variance, 0.0)) + _EXTRA_ROWS)
        late = self._plan.delivery == "phase+1"
        overflow = self._plan.margins.overflow if self._plan.margins is not None else _OVERFLOW
        return rows_needed(self._answers, candidate.encode_batch, candidate.decode_iterations, overflow, late=late)

    def _schedule(self, layout: Layout, candidate: Candidate, rows: int) -> Schedule:
        """The candidate with so many rows allocated."""
        plan, batch = self._plan, candidate.encode_batch
        encode_rows = math.ceil(batch / candidate.encode_parts)
        if self._padded:
            largest = max(plan.buckets.encode_rows[-1], _CALL_TOKENS // plan.buckets.encode_tokens[-1])
            encode_rows = min(encode_rows, largest)
        return Schedule(
            policy="rra",
            encode_batch=batch,
            decode_iterations=candidate.decode_iterations,
            decode_batch=rows,
            max_rows=rows,
            stages=layout.stages,
            micro_batch=rows,
            encode_micro_batch=encode_rows,
        )

    def _fits(self, schedule: Schedule, buckets: Buckets) -> bool:
        plan = self._plan
        share = min((m.usable_bytes / m.capacity_bytes for m in plan.memory), default=0.9)
        return all(
            entry.total_bytes <= share * self._kinds[entry.device].memory_bytes
            for entry in memory_table(self._spec, schedule, buckets, plan.dtype, plan.cache_dtype)
        )


def _around(batch: int, iterations: int, factor: float) -> Iterator[tuple[int, int]]:
    """The eight neighbours at this distance, at least one step away, and the point itself."""
    for b in sorted({batch, max(1, min(batch - 1, round(batch / factor))), max(batch + 1, round(batch * factor))}):
        for n in sorted(
            {iterations, max(1, min(iterations - 1, round(iterations / factor))),
             max(iterations + 1, round(iterations * factor))}
        ):  # fmt: skip
            yield b, n


def _layouts(plan: Plan, spec: ModelSpec, cluster: Cluster, setting: Setting) -> Iterator[Layout]:
    """The plan's placement, then equal stages of every degree and number that one island after another holds."""
    schedule = plan.schedule
    encode_parts = math.ceil(schedule.encode_batch / schedule.encode_micro_batch)
    decode_parts = math.ceil(schedule.decode_batch / schedule.micro_batch)
    yield Layout(schedule.stages, plan.replicas, encode_parts, decode_parts)
    devices = cluster.devices()
    if len({device.kind for device in devices}) > 1:
        return
    profile = setting.profiles[devices[0].kind]
    for tensor in sorted(set(profile.tensor_degrees) & set(tensor_degrees(spec))):
        groups = _groups(cluster, tensor)
        for count in (1, 2, 3, 4, 6, 8, 12, 16):
            if count > (1 if spec.encoder_layers else min(len(groups), spec.num_layers)):
                break
            cuts = [round(i * spec.num_layers / count) for i in range(count + 1)]
            stages = tuple(StageSpec("both", (cuts[i], cuts[i + 1]), groups[i], tensor) for i in range(count))
            for parts in sorted({1, count}):
                yield Layout(stages, len(groups) // count, parts, parts)


def _groups(cluster: Cluster, tensor: int) -> list[tuple[int, ...]]:
    """Tensor groups inside islands, in device order."""
    islands: dict[int, list[int]] = {}
    for device in cluster.devices():
        islands.setdefault(device.island, []).append(device.id)
    return [tuple(ids[i : i + tensor]) for ids in islands.values() for i in range(0, len(ids) - tensor + 1, tensor)]
