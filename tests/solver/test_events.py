"""The event simulation against a naive one, its clock against longest paths, its shapes against the real Runner's."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from exegpt_jax.engine.api import Pending, PhaseCommand, Sampling
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.policies import POLICIES, View
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.fake import FakeExecutor
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.facts.workload import Floats, Ints, Trace, merge
from solver.plan.bands import Bands
from solver.plan.correction import most_encoded
from solver.plan.plan import Plan, make_plan
from solver.plan.schedule import Schedule, StageSpec
from solver.plan.timeline import Timeline
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.events.arrivals import Demand, arriving, replay, saturated
from solver.simulate.events.clock import Clock
from solver.simulate.events.costs import DecodePhase
from solver.simulate.events.lengths import BatchSource, BucketCosts
from solver.simulate.events.outcome import Outcome
from solver.simulate.events.pages import Pages
from solver.simulate.events.policies import wish
from solver.simulate.events.simulation import Machines, simulate
from solver.simulate.lengths import lengths_of
from solver.simulate.points import Conditions
from solver.simulate.unit_costs import unit_costs
from tests.solver import events_naive
from tests.solver.planner_cases import (
    random_pipeline,
    random_profile,
    random_workload,
    small_cluster,
    small_spec,
)

STAGE = StageSpec("both", (0, 1), (0,), 1)
EVERYWHERE = Conditions(compaction="iteration", delivery="iteration")


def schedule_of(policy: str, **fields: int) -> Schedule:
    values = {
        "encode_batch": 6,
        "decode_iterations": 4,
        "decode_batch": 24,
        "max_rows": 40,
        "micro_batch": 24,
        "encode_micro_batch": 6,
        **fields,
    }
    return Schedule(policy=policy, stages=(STAGE,), **values)  # type: ignore[arg-type]


def run(
    schedule: Schedule, pipeline: Pipeline, demand: Demand, conditions: Conditions = EVERYWHERE, **options: object
) -> Outcome:
    return simulate(schedule, Machines(pipeline, pipeline, 100.0), demand, conditions, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["rra", "static", "iteration"])
@pytest.mark.parametrize("delivery", ["iteration", "phase"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_naive_simulation(policy: str, delivery: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pipeline = random_pipeline(rng, 1, 60, ragged=True)
    schedule = schedule_of(policy, max_rows=int(rng.integers(10, 40)), decode_batch=10, micro_batch=10)
    demand = arriving(random_workload(rng), 200, rate_rps=float(rng.uniform(5, 60)), seed=seed)
    conditions = Conditions(compaction="iteration", delivery=delivery)  # type: ignore[arg-type]
    found = run(schedule, pipeline, demand, conditions)
    people, rows = events_naive.run(schedule, pipeline, demand, delivery)
    np.testing.assert_allclose(found.encode_start_s, [person.start_s for person in people], rtol=1e-9)
    np.testing.assert_allclose(found.first_token_s, [person.first_s for person in people], rtol=1e-9)
    np.testing.assert_allclose(found.last_token_s, [person.last_s for person in people], rtol=1e-9)
    assert found.residents_mean == pytest.approx(float(np.mean(rows)))


def test_equals_a_naive_simulation_where_decode_emits_the_first_token() -> None:
    rng = np.random.default_rng(9)
    pipeline = random_pipeline(rng, 1, 60)
    demand = arriving(random_workload(rng), 200, rate_rps=20.0)
    schedule = schedule_of("rra")
    found = run(schedule, pipeline, demand, first_token="decode")
    people, _ = events_naive.run(schedule, pipeline, demand, "iteration", "decode")
    np.testing.assert_allclose(found.first_token_s, [person.first_s for person in people], rtol=1e-9)
    np.testing.assert_allclose(found.last_token_s, [person.last_s for person in people], rtol=1e-9)


def test_policies_are_the_runners() -> None:
    rng = np.random.default_rng(0)
    for policy in ("rra", "static", "iteration"):
        for _ in range(200):
            waiting, live, batch = (int(n) for n in rng.integers(0, 60, 3))
            rows = max(live, batch + 1, 40)
            schedule = schedule_of(policy, encode_batch=batch + 1, decode_batch=min(30, rows), max_rows=rows)
            if rng.random() < 0.7:
                low, high = sorted(int(n) for n in rng.integers(0, 900, 2))
                bands = Bands(low, high + 1, 1, int(rng.integers(1, rows + 1)), int(rng.integers(0, 3)))
                schedule = dataclasses.replace(schedule, bands=bands)
            prompts = tuple(int(n) for n in rng.integers(1, 60, min(waiting, most_encoded(schedule))))
            deferrals = int(rng.integers(0, 3))
            decided = POLICIES[policy](schedule, View(waiting, 0, live, rows - live, prompts, deferrals))
            wished = wish(schedule, waiting, live, True, prompts, deferrals)
            assert min(wished.admit, rows - live) == decided.admit
            assert (wished.iterations, wished.compact) == (decided.iterations, decided.compact)


def longest_paths(times: Floats, return_s: float) -> Floats:
    """float64 [N, m]: when tokens are known, from the graph of what waits for what, solved backwards."""
    count, parts, stages = times.shape

    known: dict[tuple[int, int, int], float] = {}

    def leaves(order: int, stage: int) -> float:
        key = (order // parts, order % parts, stage)
        if key not in known:
            before = leaves(order, stage - 1) if stage else 0.0
            if not stage and order >= parts:
                before = leaves(order - parts, stages - 1) + return_s
            free = leaves(order - 1, stage) if order else 0.0
            known[key] = max(before, free) + float(times[key])
        return known[key]

    return np.array([[leaves(n * parts + m, stages - 1) + return_s for m in range(parts)] for n in range(count)])


@pytest.mark.parametrize("seed", range(20))
def test_clock_is_the_longest_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.exponential(1.0, (int(rng.integers(1, 7)), int(rng.integers(1, 6)), int(rng.integers(1, 6))))
    return_s = float(rng.uniform(0, 2))
    clock = Clock(times.shape[2], return_s)
    done_s = clock.decode(times, [0.0] * times.shape[1])
    np.testing.assert_allclose(done_s, longest_paths(times, return_s), rtol=1e-12)
    np.testing.assert_allclose(clock.busy_s, times.sum(axis=(0, 1)))


def test_equal_stages_without_barrier_take_the_textbook_period() -> None:
    """Scheduling.md, 2.2: Q = m_E x^E + sum T_D + (P - 1)(x^E - x), with P micro-batches on P equal stages."""
    stages, iterations, encode_s, decode_s = 3, 4, 0.5, 0.1
    unit = random_pipeline(np.random.default_rng(0), 1, 60).stages[0].unit
    flat = dict.fromkeys(unit.hand_over_encode_s, np.zeros(61))
    unit = dataclasses.replace(
        unit,
        encode_s=np.where(np.arange(61) > 0, encode_s, 0.0),
        decode_s=np.where(np.arange(61) > 0, decode_s, 0.0)[None].repeat(3, axis=0),
        embed_encode_s=np.zeros(61),
        embed_decode_s=np.zeros(61),
        head_encode_s=np.zeros(61),
        head_decode_s=np.zeros(61),
        hand_over_encode_s=flat,
        hand_over_decode_s=flat,
    )
    stage = dataclasses.replace(random_pipeline(np.random.default_rng(0), 1, 60).stages[0], unit=unit, layers=1)
    pipeline = Pipeline(
        tuple(dataclasses.replace(stage, last=i == stages - 1, link=None if i == 2 else "host") for i in range(stages))
    )
    # Answers of 13 tokens live for exactly three periods of four iterations.
    demand = Demand(np.full(600, 10), np.full(600, 13))
    schedule = schedule_of("rra", encode_batch=6, decode_batch=18, micro_batch=6, encode_micro_batch=6)
    found = run(schedule, pipeline, demand, corrected=False, barrier=False)
    period_s = encode_s + iterations * stages * decode_s + (stages - 1) * (encode_s - decode_s)
    assert found.throughput_rps == pytest.approx(6 / period_s)
    held_up = run(schedule, pipeline, demand, corrected=False)
    assert held_up.throughput_rps < found.throughput_rps


class RecordingExecutor(FakeExecutor):
    """Remembers what the Runner asked for."""

    commands: list[PhaseCommand]

    def reset(self) -> None:
        super().reset()
        self.commands = []

    def dispatch(self, command: PhaseCommand) -> Pending:
        self.commands.append(command)
        return super().dispatch(command)


class RecordingCosts(BucketCosts):
    """Remembers the shapes that it was asked for."""

    encoded: list[list[tuple[int, int]]]
    decoded: list[tuple[int, int, int]]

    def calls(self, inputs: Ints) -> list[tuple[int, int]]:
        found = super().calls(inputs)
        self.encoded.append(sorted(found))
        return found

    def shape(self, phase: DecodePhase) -> tuple[int, int]:
        found = super().shape(phase)
        self.decoded.append((phase.dispatched, *found))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class RecordingSource(BatchSource):
    """Hands out costs that remember."""

    made: list[RecordingCosts] = dataclasses.field(default_factory=list)

    def costs(self, pipeline: Pipeline, most_decode: int) -> RecordingCosts:
        assert self.buckets is not None
        costs = RecordingCosts(pipeline, most_decode, self, self.buckets)
        costs.encoded, costs.decoded = [], []
        self.made.append(costs)
        return costs


MOST_OUTPUT = 40


def small_schedule(policy: str, rows: int, iterations: int, budget: int = 0) -> Schedule:
    return Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=min(5, rows),
        decode_iterations=iterations,
        decode_batch=max(5, rows * 3 // 4),
        max_rows=rows,
        stages=(StageSpec("both", (0, 4), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=min(5, rows),
        token_budget=budget,
    )


def short_answers(rng: np.random.Generator, count: int) -> Demand:
    outputs = rng.integers(1, MOST_OUTPUT + 1, count)
    outputs[0] = MOST_OUTPUT
    return Demand(rng.integers(1, 200, count), outputs, np.zeros(count))


def ran(schedule: Schedule, demand: Demand) -> tuple[Plan, Runner, RecordingExecutor]:
    """The real Runner on the demand, all of it there from the start."""
    names = {"model": "toy", "dtype": "float32", "cache_dtype": "float32"}
    plan = make_plan(small_spec(), schedule, **names, cache_tokens=400, max_prompt_tokens=200)
    executor = RecordingExecutor(plan, 97)
    hidden = HiddenLengths(executor, lambda row: int(demand.output_tokens[row.request]))
    runner = Runner(plan, hidden, lambda events: None)
    for number, tokens in enumerate(demand.input_tokens):
        runner.submit(Request(f"r{number}", (1,) * int(tokens), Sampling(max_tokens=MOST_OUTPUT)))
    while runner.run_phase():
        pass
    return plan, runner, executor


def what_happened(timeline: Timeline) -> list[tuple[int, str, int, int]]:
    """Phase, kind, tokens and iterations of every entry."""
    return [(entry.phase, entry.kind, entry.tokens, entry.iterations) for entry in timeline]


@pytest.mark.parametrize("policy", ["rra", "static", "iteration"])
@pytest.mark.parametrize("seed", range(3))
def test_calls_are_the_runners(policy: str, seed: int) -> None:
    """Padded profile: the same encode calls, decode rows, iterations and buckets as the Runner's commands."""
    rng = np.random.default_rng(seed)
    spec, rows = small_spec(), int(rng.integers(8, 30))
    schedule = small_schedule(policy, rows, int(rng.integers(1, 9)))
    demand = short_answers(rng, 120)
    plan, runner, executor = ran(schedule, demand)
    profile = random_profile(rng, spec, padded=True)
    source = RecordingSource({"x": profile}, spec, small_cluster(), plan.buckets)
    found = run(plan.schedule, random_pipeline(rng, 1, rows + 1), demand, Conditions(), source=source)
    assert what_happened(found.timeline) == what_happened(runner.timeline)
    (costs,) = source.made
    calls = [[(call.rows_bucket, call.tokens_bucket) for call in command.encode] for command in executor.commands]
    assert costs.encoded == [sorted(part) for part in calls if part]
    decodes = [command.decode for command in executor.commands if command.decode is not None]
    assert costs.decoded == [(call.iterations, call.rows_bucket, call.cache_bucket) for call in decodes]


@pytest.mark.parametrize("seed", range(3))
def test_chunks_are_the_runners(seed: int) -> None:
    rng = np.random.default_rng(seed)
    schedule = small_schedule("chunked", int(rng.integers(8, 30)), 1, budget=int(rng.integers(20, 300)))
    demand = short_answers(rng, 120)
    _, runner, _ = ran(schedule, demand)
    found = run(schedule, random_pipeline(rng, 1, 60), demand, fused=False)
    assert what_happened(found.timeline) == what_happened(runner.timeline)


def test_exact_lengths_cost_as_the_mean_where_all_prompts_are_equal() -> None:
    rng = np.random.default_rng(5)
    spec, cluster, profile = small_spec(window=64), small_cluster(), random_profile(rng, small_spec(window=64))
    workload = merge("equal", "test", np.full(20, 100), np.arange(1, 21), np.ones(20))
    unit = unit_costs(profile, spec, lengths_of(workload, "encode"), cluster, 1, 60)
    pipeline = Pipeline(
        (PlacedStage(unit, 2, True, False, "host"), PlacedStage(unit, 2, False, True, None)), return_s=1e-4
    )
    schedule, demand = schedule_of("rra"), saturated(workload, 2000)
    source = BatchSource({"x": profile}, spec, cluster)
    by_rows, by_lengths = (run(schedule, pipeline, demand, source=given) for given in (None, source))
    np.testing.assert_allclose(by_lengths.last_token_s, by_rows.last_token_s, rtol=1e-9)
    # The cost of a batch of 30 and 170 tokens is that of the equivalent uniform batch, by hand.
    tokens, squares = 200.0, 30.0**2 + 170.0**2
    spent = source.costs(pipeline, 0).encode(np.array([30, 170]), 1)[0]
    layer_s = np.mean(
        [profile.layer(1, kind).encode.at(tokens**2 / squares, squares / tokens) for kind in spec.layer_kinds()]
    )
    ends = profile.end(1)
    link_s = float(cluster.host.transfer_s(tokens * 64 * 4)) + profile.dispatch_s
    assert spent[0] == pytest.approx(2 * layer_s + float(ends.embed.at(tokens, 0.0)) + link_s)
    assert spent[1] == pytest.approx(2 * layer_s + float(ends.head.at(2.0, 0.0)) + profile.dispatch_s)


@pytest.mark.parametrize("seed", range(5))
def test_pages_equal_a_count_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    page = int(rng.integers(1, 9))
    pages = Pages(400 * page, page)
    rows: list[tuple[int, int]] = []
    for iteration in range(1, 200):
        while rng.random() < 0.3:
            tokens = int(rng.integers(1, 40))
            assert pages.take(tokens) == 0
            pages.join(iteration - 1, tokens)
            rows.append((iteration - 1, tokens))
        assert pages.grow(iteration)
        held = sum(-(-(tokens + iteration - joined) // page) for joined, tokens in rows)
        assert pages.used_tokens == held * page
        for row in [row for row in rows if rng.random() < 0.1]:
            rows.remove(row)
            pages.leave(*row)
            pages.give_back(row[1] + iteration - row[0])


def test_thrown_out_rows_find_what_nobody_took() -> None:
    pages = Pages(160, 16, reuse=True)
    assert pages.take(100) == 0
    pages.give_back(100, request=7)
    # Three of ten pages were never used, one was not full: four are taken before its end is.
    assert pages.take(5 * 16) == 0
    assert pages.take(101, request=7) is None
    pages.give_back(5 * 16)
    assert pages.take(101, request=7) == 5 * 16


@pytest.mark.parametrize("seed", range(4))
def test_chunked_keeps_its_budget_and_loses_nobody(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pipeline = random_pipeline(rng, int(rng.integers(1, 4)), 400)
    demand = arriving(random_workload(rng), 300, rate_rps=float(rng.uniform(5, 200)), seed=seed)
    budget, tokens = int(rng.integers(60, 300)), int(rng.integers(500, 1500))
    schedule = schedule_of("chunked", token_budget=budget, encode_batch=1)
    found = run(schedule, pipeline, demand, cache_tokens=tokens, page_tokens=8, timeline_capacity=10**6)
    assert found.arrival_s is not None
    assert (found.arrival_s <= found.encode_start_s).all()
    assert (found.encode_start_s < found.first_token_s).all()
    assert (found.first_token_s <= found.last_token_s).all()
    assert (np.diff(found.encode_start_s) >= 0).all()
    assert found.peak_tokens <= tokens
    assert max(entry.tokens for entry in found.timeline) <= budget
    # Every output token but the first takes an iteration of its own, thrown out or not.
    first_stage = [entry for entry in found.timeline if entry.stage == 0]
    assert found.preemptions > 0 or tokens > 900
    encoded = sum(entry.tokens for entry in first_stage)
    assert encoded >= int(demand.input_tokens.sum() + (demand.output_tokens - 1).sum()) - found.preemptions


@pytest.mark.parametrize("seed", range(4))
def test_devices_apart_reach_the_slower_sides_capacity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    workload = random_workload(rng)
    encode, decode = random_pipeline(rng, 2, 60), random_pipeline(rng, 1, 60)
    schedule = schedule_of("waa", decode_batch=40, micro_batch=40)
    demand = saturated(workload, 3000, seed)
    found = simulate(schedule, Machines(encode, decode, 100.0), demand, EVERYWHERE, corrected=False)
    encode_rps = 6 / float(encode.encode_s(np.array(6.0)).max())
    assert found.throughput_rps <= encode_rps * (1 + 1e-3)
    assert found.peak_rows <= 40
    if found.deferrals == 0:
        assert found.throughput_rps == pytest.approx(encode_rps, rel=1e-2)
    else:
        assert found.busy_share[-1] > 0.97


def test_pipelines_of_a_side_share_its_work() -> None:
    """Twice the encode pipelines carry twice the requests; more decode pipelines hold fewer rows each."""
    rng = np.random.default_rng(1)
    workload = random_workload(rng)
    encode, decode = random_pipeline(rng, 2, 60), random_pipeline(rng, 1, 60)
    demand = saturated(workload, 4000)

    def simulated(encode_replicas: int, decode_replicas: int) -> Outcome:
        schedule = dataclasses.replace(
            schedule_of("disaggregated", decode_batch=60, max_rows=60, micro_batch=60),
            encode_replicas=encode_replicas,
            decode_replicas=decode_replicas,
        )
        return simulate(schedule, Machines(encode, decode, 100.0), demand, EVERYWHERE)

    encode_rps = 6 / float(encode.encode_s(np.array(6.0)).max())
    one, two, many = simulated(1, 4), simulated(2, 4), simulated(8, 4)
    assert one.throughput_rps == pytest.approx(encode_rps, rel=0.02)
    assert two.throughput_rps == pytest.approx(2 * encode_rps, rel=0.02)
    assert simulated(1, 8).residents_mean < one.residents_mean
    alone = simulated(8, 1)
    assert many.throughput_rps == pytest.approx(4 * alone.throughput_rps, rel=0.05) or many.busy_share[-1] < 0.9
    assert len(one.last_token_s) <= 4000


def test_rows_that_do_not_fit_wait_and_are_counted() -> None:
    pipeline = random_pipeline(np.random.default_rng(0), 1, 60)
    demand = Demand(np.full(300, 50), np.full(300, 20))
    roomy = run(schedule_of("rra", max_rows=60), pipeline, demand, corrected=False)
    tight = run(schedule_of("rra", max_rows=24), pipeline, demand, corrected=False)
    assert (roomy.deferrals, roomy.deferred_phases) == (0, 0)
    assert tight.deferrals > 0
    assert tight.peak_rows <= 24
    assert tight.throughput_rps < roomy.throughput_rps
    # Allocated, but not to be held.
    held = dataclasses.replace(schedule_of("rra", max_rows=60), decode_batch=20, held_rows=24)
    assert run(held, pipeline, demand, corrected=False).peak_rows <= 24
    paged = run(schedule_of("rra", max_rows=60), pipeline, demand, corrected=False, cache_tokens=1500)
    assert paged.deferrals > 0
    # Room is left for the coming phase alone, so residents may outgrow it a little.
    assert paged.peak_tokens <= 1.05 * 1500 < roomy.peak_tokens


def test_correction_holds_the_planned_batch_closer() -> None:
    rng = np.random.default_rng(3)
    pipeline, workload = random_pipeline(rng, 1, 60), random_workload(rng)
    demand = saturated(workload, 2500)
    fixed, corrected = (run(schedule_of("rra"), pipeline, demand, corrected=on) for on in (False, True))
    assert corrected.residents_variance < 0.5 * fixed.residents_variance


def test_replicas_share_the_requests() -> None:
    pipeline = random_pipeline(np.random.default_rng(0), 1, 60)
    demand = arriving(random_workload(np.random.default_rng(1)), 400, 20.0)
    one = run(schedule_of("rra"), pipeline, demand)
    two = run(schedule_of("rra"), pipeline, demand, replicas=2)
    assert len(two.last_token_s) == 400
    assert two.latencies_s("arrival").mean() < one.latencies_s("arrival").mean()


def test_arrivals() -> None:
    workload = random_workload(np.random.default_rng(0))
    for variation in (0.0, 1.0, 3.0):
        demand = arriving(workload, 50_000, 7.0, variation)
        assert demand.arrival_s is not None
        gaps = np.diff(demand.arrival_s)
        assert gaps.mean() == pytest.approx(1 / 7.0, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.1)
    drawn = saturated(workload, 100_000)
    assert drawn.input_tokens.mean() == pytest.approx(workload.mean_input, rel=0.02)
    assert float(np.corrcoef(drawn.input_tokens, drawn.output_tokens)[0, 1]) == pytest.approx(
        workload.correlation, abs=0.02
    )
    trace = Trace(np.array([0.0, 1.0, 4.0]), np.array([1, 2, 3]), np.array([4, 5, 6]))
    assert replay(trace, 2.0).arrival_s == pytest.approx([0.0, 0.5, 2.0])


def test_bad_input_is_one_line() -> None:
    workload, pipeline = random_workload(np.random.default_rng(0)), random_pipeline(np.random.default_rng(0), 1, 60)
    for wrong in (
        lambda: replay(Trace(None, np.array([1]), np.array([1])), 0.0),
        lambda: arriving(workload, 10, float("nan")),
        lambda: saturated(workload, 0),
        lambda: run(schedule_of("rra"), pipeline, saturated(workload, 20), corrected=False),
        lambda: run(schedule_of("rra"), pipeline, saturated(workload, 900), cache_tokens=3),
        lambda: run(schedule_of("rra", max_rows=400), pipeline, saturated(workload, 2000), corrected=False).latencies_s(
            "arrival"
        ),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            wrong()


def test_timeline_covers_the_run(tmp_path: pathlib.Path) -> None:
    pipeline = random_pipeline(np.random.default_rng(0), 3, 60)
    demand = arriving(random_workload(np.random.default_rng(1)), 200, 20.0)
    found = run(schedule_of("rra", micro_batch=8, encode_micro_batch=2), pipeline, demand)
    assert {entry.stage for entry in found.timeline} == {0, 1, 2}
    assert sum(e.rows for e in found.timeline if e.kind == "encode" and e.stage == 2) == 200
    decoded = sum(e.tokens for e in found.timeline if e.kind == "decode" and e.stage == 2)
    assert decoded == int((demand.output_tokens - 1).sum())
    assert max(e.ready_s for e in found.timeline) <= found.last_token_s.max()
    found.timeline.write_chrome_trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
