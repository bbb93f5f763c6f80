"""A Runner that follows the traffic, on the hand-computable executor: whatever changes, everybody gets their tokens."""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from exegpt_jax.engine.api import EncodeRow, Executor, Sampling
from exegpt_jax.runner.delivery import Outcome
from exegpt_jax.runner.events import Event, Finished, Tokens
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.next_plan import Replan
from exegpt_jax.runner.records import Record
from exegpt_jax.runner.request import Request
from exegpt_jax.runner.rows import Row
from exegpt_jax.testing import fake
from exegpt_jax.testing.fake import FakeExecutor
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.facts.workload import Workload
from solver.plan.at_pace import profile_bounds
from solver.plan.bounds import Bounds
from solver.plan.certificate import Margins, Neighbour
from solver.plan.plan import Plan
from solver.plan.prediction import Prediction
from solver.plan.timeline import Predictor, TimelineEntry
from tests.exegpt_jax.runner_bench import VOCAB, plan_of, prompts

N = 5
SHORT, LONG = 16, 36  # tokens: 3 to 4 and 7 to 8 phases


def planned(rows: int = 30, batch: int = 4, bound_from: str = "encode") -> Plan:
    plan = plan_of("rra", encode_batch=batch, iterations=N, rows=rows, decode_batch=min(rows, 3 * batch))
    neighbours = (Neighbour(0.1, batch, N - 1, 1.0, 4 * batch), Neighbour(0.3, batch - 1, N, 1.0, 4 * batch - 4))
    margins = Margins(0.0, -0.2, 0.3, 0.8 * SHORT, 1.3 * SHORT, 1e-3, neighbours, 15.0, -0.9, 3.0)
    bounds = Bounds(latency_s=1.0, bound_from=bound_from)  # type: ignore[arg-type]
    return dataclasses.replace(plan, margins=margins, bounds=bounds)


@dataclasses.dataclass
class Next:
    """A successor over the same rows, or over an empty cache."""

    plan: Plan
    carries: bool
    compiled: int = 0
    fails: bool = False

    def take_over(self, executor: Executor) -> Executor:
        assert isinstance(executor, HiddenLengths)
        if self.fails:
            raise RuntimeError("no room")
        if not self.carries:
            assert executor.live_bytes() == 0
        return executor.around(executor.executor.continued(self.plan))  # type: ignore[attr-defined]


class Drive:
    """Hidden lengths, a queue that never runs dry, phases by hand."""

    def __init__(
        self,
        plan: Plan,
        lengths: Callable[[int], int],
        follower: Follower | None,
        requests: int,
        predictor: Predictor | None = None,
    ) -> None:
        self.requests = [
            Request(str(number), prompt, Sampling(max_tokens=60))
            for number, prompt in enumerate(prompts(7, requests, 30))
        ]
        self.lengths, self.follower = lengths, follower
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.finished: dict[str, Finished] = {}
        self.now_s = 0.0
        self.executor = HiddenLengths(FakeExecutor(plan, VOCAB), self.length)
        self.runner = Runner(plan, self.executor, self.hear, clock=self.clock, predictor=predictor, follower=follower)
        self.run()

    def clock(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def length(self, row: EncodeRow) -> int:
        return self.lengths(row.request)

    def hear(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self.tokens[event.id] += event.token_ids
            else:
                assert event.id not in self.finished
                self.finished[event.id] = event

    def run(self) -> None:
        waiting = list(reversed(self.requests))
        while len(self.finished) < len(self.requests):
            while waiting and self.runner.stats().waiting < 40:
                self.runner.submit(waiting.pop())
            if self.follower is not None and self.follower.busy:
                time.sleep(0.0005)  # the other thread's turn
            assert self.runner.run_phase() or len(self.finished) == len(self.requests)
        self.runner.run_phase()

    def check(self) -> None:
        """Nobody is lost, everybody has the tokens of the arithmetic, nothing is left behind."""
        stats = self.runner.stats()
        assert (stats.failed_phases, stats.running, stats.waiting, stats.live_bytes) == (0, 0, 0, 0)
        for number, request in enumerate(self.requests):
            sampling = dataclasses.replace(request.sampling, max_tokens=min(60, self.lengths(number)))
            assert tuple(self.tokens[request.id]) == fake.answer(request.prompt_ids, sampling, VOCAB)
            assert self.finished[request.id].reason in ("stop", "length")

    def records(self, event: str) -> list[Record]:
        assert self.follower is not None
        return [record for record in self.follower.records if record.event == event]


def step(change: int, before: int, after: int) -> Callable[[int], int]:
    """Lengths that vary a little, and change their mean at the request of this number."""
    rng = random.Random(5)
    jitter = [rng.choice([-1, 0, 1]) for _ in range(8000)]
    return lambda number: (before if number < change else after) + jitter[number]


def again(new: Plan, asked: list[tuple[Workload, Plan]], *, carries: bool = True, fails: bool = False) -> Replan:
    def plan_again(workload: Workload, plan: Plan) -> Plan:
        asked.append((workload, plan))
        return new

    return Replan(plan_again, lambda executor, plan: Next(plan, carries, 3, fails))


def test_within_the_margins_the_schedule_is_adjusted() -> None:
    plan = planned()
    drive = Drive(plan, step(300, SHORT, 20), Follower(plan), 1200)
    drive.check()
    adjusted = drive.records("adjust")
    assert len(adjusted) <= 6  # some on the way
    final = adjusted[-1].numbers
    assert (final["encode_batch"], final["decode_iterations"]) == (3, N)
    assert 17 < final["output_tokens"] < 21  # type: ignore[operator]
    assert drive.records("beyond") == []
    batches = [len(rows) for rows in _encoded(drive)]
    assert np.mean(batches[-40:-10]) == pytest.approx(3, abs=0.5)


def _encoded(drive: Drive) -> list[list[Finished]]:
    """Requests by the phase that encoded them."""
    found: dict[float, list[Finished]] = collections.defaultdict(list)
    for end in drive.finished.values():
        found[end.times.encode_start_s].append(end)
    return [found[at] for at in sorted(found)]


def test_without_a_planner_drift_beyond_the_margins_is_met_with_what_is_compiled() -> None:
    plan = planned()
    drive = Drive(plan, step(300, SHORT, LONG), Follower(plan), 1200)
    drive.check()
    last = drive.records("beyond")[-1].numbers
    assert 0.3 < last["output_drift"] < LONG / SHORT  # type: ignore[operator]
    assert last["margin_used"] > 1  # type: ignore[operator]
    # The last entry's 12 rows over 7.3 phases.
    assert (last["encode_batch"], last["decode_iterations"], last["decode_batch"]) == (2, N, 12)
    assert drive.records("ask") == []


@pytest.mark.parametrize("rows", [12, 30, 50])
@pytest.mark.parametrize("carries", [True, False])
def test_beyond_them_a_plan_is_made_and_swapped_in(rows: int, carries: bool) -> None:
    plan = planned()
    new = planned(rows=rows, batch=3)
    asked: list[tuple[Workload, Plan]] = []
    # The new plan is for the new lengths.
    margins = Margins(0.0, -0.2, 0.3, 0.8 * LONG, 1.3 * LONG, 1e-3, (), 15.0, -0.9, 3.0)
    new = dataclasses.replace(new, margins=margins)
    follower = Follower(plan, replan=again(new, asked, carries=carries))
    drive = Drive(plan, step(300, SHORT, LONG), follower, 900)
    drive.check()
    ((workload, before),) = asked
    assert before is plan
    assert workload.mean_output == pytest.approx(LONG, rel=0.05)
    assert workload.mean_input == pytest.approx(15.5, abs=2)
    assert workload.most_tokens <= plan.cache_tokens
    assert [len(drive.records(event)) for event in ("ask", "planned", "swap", "no plan")] == [1, 1, 1, 0]
    swap = drive.records("swap")[0].numbers
    assert swap["plan"] == new.digest[:12]
    assert (swap["carried"] > 0) == carries  # type: ignore[operator]
    if rows >= 30:
        assert (swap["held_s"] > 0) != carries  # type: ignore[operator]
    assert drive.runner.plan is new
    assert drive.runner.stats().compilations == 0


def test_no_plan_and_a_swap_that_fails_leave_the_plan_in_force() -> None:
    plan = planned()

    def refuses(workload: Workload, given: Plan) -> Plan:
        raise ValueError("latency_bound_s=1 binds")

    replan = Replan(refuses, lambda executor, given: Next(given, True))
    drive = Drive(plan, step(300, SHORT, LONG), Follower(plan, replan=replan), 800)
    drive.check()
    # Asked once for these lengths, not at every look.
    assert [record.numbers["error"] for record in drive.records("no plan")] == ["ValueError: latency_bound_s=1 binds"]
    assert drive.runner.plan is plan
    for carries in (True, False):
        asked: list[tuple[Workload, Plan]] = []
        follower = Follower(plan, replan=again(planned(rows=20, batch=3), asked, carries=carries, fails=True))
        drive = Drive(plan, step(300, SHORT, LONG), follower, 900)
        assert len(drive.records("swap failed")) == 1
        assert drive.runner.plan is plan
        assert all(end.reason in ("stop", "length") for end in drive.finished.values())


def test_a_plan_that_holds_less_than_was_promised_is_refused() -> None:
    plan = planned()
    small = dataclasses.replace(
        plan, cache_tokens=100, buckets=dataclasses.replace(plan.buckets, cache_tokens=(64, 100))
    )
    asked: list[tuple[Workload, Plan]] = []
    drive = Drive(plan, step(300, SHORT, LONG), Follower(plan, replan=again(small, asked)), 900)
    drive.check()
    assert "less than what requests were promised" in str(drive.records("no plan")[0].numbers["error"])


def test_bounds_from_arrival_are_planned_for_with_the_arrivals() -> None:
    plan = planned(bound_from="arrival")
    asked: list[tuple[Workload, Plan]] = []
    drive = Drive(plan, step(300, SHORT, LONG), Follower(plan, replan=again(planned(), asked)), 900)
    drive.check()
    workload = asked[0][0]
    assert workload.trace is not None
    assert workload.trace.arrival_s is not None
    assert (np.diff(workload.trace.arrival_s) >= 0).all()
    assert workload.trace.output_tokens.mean() == pytest.approx(LONG, rel=0.05)


@pytest.mark.parametrize("first_token", ["encode", "decode"])
def test_a_prompt_counts_with_the_first_token_behind_it(first_token: str) -> None:
    """Wherever that comes from: in encoder-decoder models from the first decode iteration."""
    plan = planned()
    follower = Follower(plan, first_token=first_token)  # type: ignore[arg-type]
    rows = {str(n): Row(n, Request(str(n), (1,) * 9, Sampling(max_tokens=60)), 0.0) for n in range(80)}
    for part in range(3):
        events = tuple(Tokens(name, (5, 6)) for name in rows)
        for row in rows.values():
            row.generated += 2
        ended = tuple((row, "stop", 6) for row in rows.values()) if part == 2 else ()
        follower.saw(Outcome(events, ended, 80, 160), rows)  # type: ignore[arg-type]
    follower.at_boundary(0, FakeExecutor(plan, VOCAB))
    (record,) = follower.records
    assert (record.numbers["input_tokens"], record.numbers["output_tokens"]) == (9.0, 6.0)
    assert record.numbers["requests"] == 80.0


def test_steady_traffic_asks_for_nothing() -> None:
    plan = planned()
    asked: list[tuple[Workload, Plan]] = []
    drive = Drive(plan, step(0, SHORT, SHORT), Follower(plan, replan=again(plan, asked)), 800)
    drive.check()
    assert {record.event for record in drive.follower.records} == {"keep"}  # type: ignore[union-attr]
    assert asked == []


class Expects:
    """The same of every phase; another number from some phase on."""

    def __init__(self, seconds: float, change: int = 0, then: float = 0.0) -> None:
        self._seconds, self._change, self._then = seconds, change, then

    def entry_s(self, entry: TimelineEntry) -> float | None:
        return None

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        late = self._change and entries[0].phase >= self._change
        return self._then if late else self._seconds


def usual_phase_s(plan: Plan) -> float:
    drive = Drive(plan, step(0, SHORT, SHORT), None, 200)
    return statistics.median(phase.measured_s for phase in drive.runner.timeline.phases())


def test_devices_that_are_slower_than_their_profile_are_planned_for() -> None:
    """Phases that take 1.6 times as long as predicted: another plan, under bounds as much shorter, once."""
    plan, asked = planned(), []
    new = dataclasses.replace(planned(batch=3), prediction=Prediction(100.0, 0.5, 0.1, 0.01))
    usual_s = usual_phase_s(plan)
    follower = Follower(plan, replan=again(new, asked))
    drive = Drive(plan, step(0, SHORT, SHORT), follower, 6000, Expects(usual_s, 100, usual_s / 1.6))
    drive.check()
    ((workload, under),) = asked
    (record,) = drive.records("ask")
    pace = record.numbers["pace"]
    assert isinstance(pace, float)
    assert pace == pytest.approx(1.6, rel=0.1)
    assert plan.bounds is not None
    assert under.bounds is not None
    assert under.bounds.latency_s == pytest.approx(profile_bounds(plan.bounds, pace).latency_s)
    assert workload.mean_output == pytest.approx(SHORT, abs=1)
    # What runs is on the wall's clock again, and its pace is what it was planned for.
    in_force = drive.runner.plan
    assert in_force.bounds == plan.bounds
    assert in_force.prediction is not None
    assert in_force.prediction.latency_s == pytest.approx(0.5 * pace)
    assert in_force.prediction.throughput_rps == pytest.approx(100 / pace)
    assert "phases take 1." in str(drive.records("beyond")[0].numbers["reason"])


def test_a_pace_within_the_margin_asks_for_nothing() -> None:
    plan = planned()
    asked: list[tuple[Workload, Plan]] = []
    predictor = Expects(usual_phase_s(plan) / 1.1)
    drive = Drive(plan, step(0, SHORT, SHORT), Follower(plan, replan=again(plan, asked)), 800, predictor)
    drive.check()
    assert {record.event for record in drive.records("keep")} == {"keep"}
    assert asked == drive.records("beyond") == []


def test_records_are_lines_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="exegpt_jax.runner.follow")
    plan = planned()
    drive = Drive(plan, step(200, SHORT, LONG), Follower(plan), 500)
    lines = [json.loads(message.removeprefix("replan ")) for message in caplog.messages]
    assert len(lines) == len(drive.follower.records)  # type: ignore[union-attr]
    for line in lines:
        assert {"event", "at_s", "phase", "output_tokens", "output_error", "margin_used", "reason"} <= set(line)


def wish(follower: Follower, drive: Drive, latency_s: float | None) -> None:
    follower.want_plan(latency_s)
    while not drive.records("swap") and not drive.records("no plan"):
        drive.runner.run_phase()
        time.sleep(0.0005)  # the other thread's turn


def test_a_plan_that_is_wished_for_is_made_under_the_bound_that_is_given() -> None:
    plan, asked = planned(), []
    new = dataclasses.replace(planned(batch=3), bounds=Bounds(latency_s=0.5))
    follower = Follower(plan, replan=again(new, asked))
    drive = Drive(plan, step(10_000, SHORT, SHORT), follower, 200)
    assert not drive.records("ask")
    wish(follower, drive, 0.5)
    drive.check()
    ((workload, under),) = asked
    assert under.bounds == dataclasses.replace(plan.bounds, latency_s=0.5)  # type: ignore[type-var]
    assert workload.mean_output == pytest.approx(SHORT, abs=1)
    assert drive.runner.plan == new


def test_a_wish_without_a_bound_keeps_those_that_stand_and_one_that_fails_changes_nothing() -> None:
    plan, asked = planned(), []

    def none(workload: Workload, plan: Plan) -> Plan:
        asked.append(plan)
        raise ValueError("no plan keeps every bound")

    follower = Follower(plan, replan=Replan(none, lambda executor, plan: Next(plan, True)))
    drive = Drive(plan, step(10_000, SHORT, SHORT), follower, 200)
    wish(follower, drive, None)
    assert asked == [plan]
    (record,) = drive.records("no plan")
    assert record.numbers["error"] == "ValueError: no plan keeps every bound"
    assert drive.runner.plan == plan


def test_a_wish_is_refused_where_nothing_is_planned_and_told_where_nothing_is_known() -> None:
    plan = planned()
    with pytest.raises(ValueError, match="replan: within, so no other plan is made"):
        Follower(plan).want_plan()
    follower = Follower(plan, replan=again(plan, []))
    drive = Drive(plan, step(10_000, SHORT, SHORT), follower, 10)
    wish(follower, drive, 0.5)
    assert "too few requests have ended" in str(drive.records("no plan")[0].numbers["error"])
