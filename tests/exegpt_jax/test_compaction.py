"""Rows are re-packed where the profile says that it pays, and wherever it says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from exegpt_jax.engine.api import PhaseCommand, Sampling
from exegpt_jax.runner.compaction import Repacking, pays
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.fake import FakeExecutor
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule, StageSpec
from solver.plan.timeline import TimelineEntry

BUCKETS = Buckets((8,), (8,), (4, 8, 16), (16, 64))


def plan_of(parts: int = 1, stages: int = 1) -> Plan:
    specs = tuple(StageSpec("both", (n, n + 1), (n,), 1) for n in range(stages))
    schedule = Schedule("rra", 8, 4, 16, 16, specs, 16 // parts, 8)
    return Plan("test", "float32", "float32", 64, 8, schedule, BUCKETS)


class PerRow:
    """An iteration takes a second for each row and each 64 positions, and `fixed` besides."""

    def __init__(self, fixed_s: float) -> None:
        self.fixed_s = fixed_s
        self.asked: list[TimelineEntry] = []

    def entry_s(self, entry: TimelineEntry) -> float | None:
        self.asked.append(entry)
        return entry.iterations * (self.fixed_s + entry.rows_bucket * entry.tokens_bucket / 64)

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        return 5.0 + sum(self.entry_s(entry) or 0.0 for entry in entries)


@pytest.mark.parametrize(
    ("iterations", "fixed_s", "expected"),
    [
        (4, 0.0, True),  # saves 4 x 12 s, one move takes 2 x 8
        (1, 0.0, False),  # saves 12 s
        (4, 30.0, False),  # a move takes 2 x 38
    ],
)
def test_iterations_saved_stand_against_rows_moved(iterations: int, fixed_s: float, expected: bool) -> None:
    assert pays(Repacking(3, 16, 4, 2, iterations, 60), plan_of(), PerRow(fixed_s)) is expected


def test_many_moves_cost_more_and_all_stages_and_micro_batches_count() -> None:
    assert pays(Repacking(0, 16, 8, 8, 4, 60), plan_of(), PerRow(0.0))
    assert not pays(Repacking(0, 16, 8, 9, 4, 60), plan_of(), PerRow(0.0))
    predictor = PerRow(0.0)
    pays(Repacking(7, 16, 8, 1, 4, 60), plan_of(parts=2, stages=2), predictor)
    asked = [(e.phase, e.stage, e.micro_batch, e.rows_bucket, e.iterations) for e in predictor.asked[:4]]
    assert asked == [(7, stage, part, 8, 4) for stage in (0, 1) for part in (0, 1)]


def test_without_a_prediction_fewer_rows_are_worth_it() -> None:
    class Silent(PerRow):
        def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
            return None

    assert pays(Repacking(0, 16, 8, 16, 1, 60), plan_of(), None)
    assert pays(Repacking(0, 16, 8, 16, 1, 60), plan_of(), Silent(0.0))


class Listening(FakeExecutor):
    """Keeps what it was told."""

    def dispatch(self, command: PhaseCommand):  # type: ignore[no-untyped-def]
        self.told = [*getattr(self, "told", []), command]
        return super().dispatch(command)


@pytest.mark.parametrize(("fixed_s", "moves"), [(0.0, True), (1e9, False)])
def test_the_runner_asks(fixed_s: float, moves: bool) -> None:
    plan = plan_of()
    executor = Listening(plan, 97)
    runner = Runner(plan, executor, lambda events: None, predictor=PerRow(fixed_s))
    for number in range(16):
        # The highest slots outlive the others.
        runner.submit(Request(str(number), (1, 2), Sampling(max_tokens=30 if number > 13 else 9)))
    while runner.run_phase():
        pass
    assert any(command.moves for command in executor.told) is moves
    assert runner.stats().live_bytes == 0
