"""Closed form of RRA against slow arithmetic that shares nothing with it: loops over cohorts, iterations and stages."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.facts.workload import Workload
from solver.simulate.costs import Pipeline, PlacedStage, UnitCosts
from solver.simulate.iteration import encode_phase_s, iterations_s
from solver.simulate.lengths import lengths_of, residents
from solver.simulate.points import Conditions, Points
from solver.simulate.quantiles import occupancy, quantile_with_wait, resident_quantile, weighted_quantile
from solver.simulate.rra import evaluate_rra
from tests.solver.planner_cases import paper_task, random_pipeline, random_unit, random_workload

CONDITIONS = [
    Conditions(compaction=compaction, delivery=delivery)
    for compaction in ("iteration", "phase")
    for delivery in ("iteration", "phase", "phase+1")
]


def lookup(pipeline: Pipeline, phase: str, rows: float, context: float = 0.0) -> list[float]:
    """Every stage's time by plain interpolation of its unit's columns."""
    times = []
    for stage in pipeline.stages:
        unit = stage.unit
        grid = np.arange(unit.most_rows + 1)

        def at(column: np.ndarray, grid: np.ndarray = grid) -> float:
            return float(np.interp(rows, grid, column))

        if phase == "encode":
            total = stage.layers * at(unit.encode_s)
            total += at(unit.embed_encode_s) if stage.first else 0.0
            total += at(unit.head_encode_s) if stage.last else at(unit.hand_over_encode_s[stage.link])
        else:
            by_context = [at(column) for column in unit.decode_s]
            total = stage.layers * float(np.interp(context, unit.contexts, by_context))
            total += at(unit.embed_decode_s) if stage.first else 0.0
            total += at(unit.head_decode_s) if stage.last else at(unit.hand_over_decode_s[stage.link])
        times.append(total)
    return times


def slow_rra(
    pipeline: Pipeline,
    workload: Workload,
    f: int,
    batch: int,
    n: int,
    parts: tuple[int, int],
    conditions: Conditions,
) -> dict[str, float]:
    """Request by request, age by age, iteration by iteration."""
    cases = [
        (int(i), int(s) - f, float(p))
        for i, s, p in zip(workload.input_tokens, workload.output_tokens, workload.probability, strict=True)
    ]
    m_e, m_d = parts
    x = lookup(pipeline, "encode", batch / m_e)
    encode = sum(x) + (m_e - 1) * max(x)
    rows, tokens = [], []
    for u in range(1, n + 1):
        alive = [(p, i + a * n + u - 1) for i, d, p in cases for a in range(d // n + 2) if a * n + u <= d]
        rows.append(batch * sum(p for p, _ in alive))
        tokens.append(batch * sum(p * t for p, t in alive))
    context, spent, drain = 0.0, [0.0], [0.0]
    for u in range(n):
        if conditions.compaction == "phase":
            live, context = rows[0], tokens[0] / rows[0] + u
        else:
            live, context = rows[u], tokens[u] / rows[u] if rows[u] > 1e-12 else context
        x = lookup(pipeline, "decode", live / m_d, context)
        path = sum(x) + (pipeline.return_s if len(x) > 1 else 0.0)
        spent.append(spent[-1] + max(m_d * max(x), path))
        drain.append(min(path - max(x), (m_d - 1) * max(x)))
    period = encode + spent[n] + drain[n]

    def latency(d: int) -> float:
        if d == 0:
            return encode
        k = math.ceil(d / n)
        if conditions.delivery == "iteration":
            r = d - (k - 1) * n
            return (k - 1) * period + encode + spent[r] + drain[r]
        return (k + (conditions.delivery == "phase+1")) * period

    first = encode if f else latency(1)
    d99 = workload.output_percentile(99) - f
    each = sorted(((latency(d) - first) / (d + f - 1), p) for _, d, p in cases if d + f >= 2)
    total, below, tpot = sum(p for _, p in each), 0.0, 0.0
    for value, p in each:
        below += p
        tpot = value
        if below >= 0.99 * total - 1e-9:
            break
    return {
        "throughput_rps": batch / period,
        "latency_s": latency(d99),
        "ttft_s": first,
        "tpot_s": tpot,
        "period_s": period,
        "decode_batch": rows[0],
    }


@pytest.mark.parametrize("conditions", CONDITIONS, ids=lambda c: f"{c.compaction}-{c.delivery}")
@pytest.mark.parametrize("f", [0, 1])
def test_equals_loops_over_cohorts(conditions: Conditions, f: int) -> None:
    rng = np.random.default_rng(7 + f)
    for case in range(6):
        workload = random_workload(rng, pairs=12, most_output=25)
        lengths = lengths_of(workload, "encode" if f else "decode")
        if lengths.mean_decode < 0.5:
            continue
        pipeline = random_pipeline(rng, 1 + case % 4, 400, ragged=case % 2 == 0)
        batch, n = rng.integers(1, 15, 8), rng.integers(1, 30, 8)
        m_e, m_d = rng.integers(1, 4, 8), rng.integers(1, 4, 8)
        found = evaluate_rra(pipeline, lengths, conditions, batch, n, m_e, m_d)
        for at in range(8):
            parts = int(m_e[at]), int(m_d[at])
            expected = slow_rra(pipeline, workload, f, int(batch[at]), int(n[at]), parts, conditions)
            for name, value in expected.items():
                assert getattr(found, name)[at] == pytest.approx(value, rel=1e-9, abs=1e-12), (name, at)


def run_pipeline(x: list[float], iterations: int, parts: int, back: float) -> float:
    """When the last token is back, of micro-batches that queue at every stage and wait for their own last token."""
    free, ready = [0.0] * len(x), [0.0] * parts
    for _ in range(iterations):
        for part in range(parts):
            now = ready[part]
            for stage, seconds in enumerate(x):
                free[stage] = now = max(now, free[stage]) + seconds
            ready[part] = now + back
    return max(ready)


def test_pipeline_maximum_is_that_of_a_discrete_simulation() -> None:
    rng = np.random.default_rng(11)
    for case in range(300):
        stages, parts, count = int(rng.integers(1, 7)), int(rng.integers(1, 7)), int(rng.integers(1, 6))
        pipeline = random_pipeline(rng, stages, 20, ragged=case % 2 == 0)
        rows = parts * float(rng.integers(1, 20))
        one = iterations_s(pipeline, np.array([[rows]]), np.full(count, 50.0), np.array([float(parts)]))
        expected = run_pipeline(lookup(pipeline, "decode", rows / parts, 50.0), count, parts, pipeline.return_s)
        assert one.apart_s.sum() + one.drain_s[-1, 0] == pytest.approx(expected, rel=1e-12)
        encode = encode_phase_s(pipeline, np.array([rows]), np.array([float(parts)]))
        expected = run_pipeline(lookup(pipeline, "encode", rows / parts), 1, parts, 0.0)
        assert encode[0] == pytest.approx(expected, rel=1e-12)


def test_rows_are_conserved_and_admission_weights_are_the_papers_error() -> None:
    lengths = lengths_of(paper_task("T"), "decode")
    for n in (1, 7, 13, 64, 400):
        found = residents(lengths, n)
        assert found.rows.sum() == pytest.approx(lengths.mean_decode, rel=1e-12)
        assert np.all(np.diff(found.rows) <= 1e-12)
    found = residents(lengths, 13)
    workload = lengths.workload
    by_admission = 1 / float(workload.probability @ (1 / np.ceil(workload.output_tokens / 13)))
    assert found.rows[0] == pytest.approx(10.35, abs=0.005)
    assert by_admission == pytest.approx(6.50, abs=0.005)
    assert 20 * found.rows_variance == pytest.approx(59.6, abs=0.05)


def constant_unit(encode_s: float, decode_s: float, most_rows: int) -> UnitCosts:
    unit = random_unit(np.random.default_rng(0), most_rows)
    ones = np.ones(most_rows + 1)
    nothing = dict.fromkeys(unit.hand_over_encode_s, 0 * ones)
    return dataclasses.replace(
        unit,
        encode_s=encode_s * ones,
        decode_s=np.full((len(unit.contexts), most_rows + 1), decode_s),
        embed_encode_s=0 * ones,
        embed_decode_s=0 * ones,
        head_encode_s=0 * ones,
        head_decode_s=0 * ones,
        hand_over_encode_s=nothing,
        hand_over_decode_s=nothing,
    )


@pytest.mark.parametrize(
    ("batch", "n", "throughput_rps", "latency_s"), [(52, 13, 25.23, 10.23), (49, 7, 26.15, 16.87)], ids=["row3", "row4"]
)
def test_table_6_of_the_paper(batch: int, n: int, throughput_rps: float, latency_s: float) -> None:
    """A1: the latency that follows from the row's throughput and Table 7's iteration of 0.038 s, to 0.1%."""
    iteration_s = 0.038
    encode_s = batch / throughput_rps - n * iteration_s
    pipeline = Pipeline((PlacedStage(constant_unit(encode_s, iteration_s, 600), 1, True, True, None),))
    conditions = Conditions(compaction="iteration", delivery="iteration")
    lengths = lengths_of(paper_task("S"), "decode")
    found = evaluate_rra(pipeline, lengths, conditions, np.array([batch]), np.array([n]))
    assert found.throughput_rps[0] == pytest.approx(throughput_rps, rel=1e-9)
    assert found.latency_s[0] == pytest.approx(latency_s, rel=1e-3)


def exact_quantile(batch: int, held: np.ndarray, overflow: float) -> int:
    """Fewest rows that a sum of binomials exceeds with at most that probability, by convolution."""
    pmf = np.ones(1)
    for q in held:
        one = np.array([math.comb(batch, k) * q**k * (1 - q) ** (batch - k) for k in range(batch + 1)])
        pmf = np.convolve(pmf, one)
    return int(np.searchsorted(np.cumsum(pmf), 1 - overflow))


@pytest.mark.parametrize("task", ["S", "T", "G", "C1", "C2"])
def test_max_rows_is_the_quantile_of_residents(task: str) -> None:
    lengths = lengths_of(paper_task(task), "encode")
    for n in (4, 16, 50):
        held = occupancy(lengths, n, late=False)
        for batch in (1, 3, 10, 40):
            found = int(resident_quantile(np.array([batch]), held, 1e-3)[0])
            least = max(exact_quantile(batch, held, 1e-3), batch, math.ceil(batch * held.sum()))
            assert abs(found - least) <= 1, (n, batch, found, least)


@pytest.mark.parametrize("task", ["T", "C2"])
def test_paged_tokens_overflow_as_seldom_as_asked(task: str) -> None:
    """Drawn cohorts exceed the normal quantile in at most three times the stated share of periods."""
    workload, n, batch, overflow = paper_task(task), 16, 24, 1e-2
    lengths = lengths_of(workload, "encode")
    rng = np.random.default_rng(5)
    pipeline = random_pipeline(rng, 1, 3000)
    unit = pipeline.stages[0].unit
    conditions = Conditions(compaction="phase", cache_layout="paged", overflow=overflow)
    found = evaluate_rra(pipeline, lengths, conditions, np.array([batch]), np.array([n]))
    weights = pipeline.stages[0].layers * unit.weights_bytes + unit.embed_bytes + unit.head_bytes
    allowed = (found.memory_bytes[0, 0] - weights) / (pipeline.stages[0].layers * unit.cache_token_bytes)
    ages, trials = -(-lengths.most_decode // n), 4000
    tokens = np.zeros(trials)
    for age in range(ages):
        drawn = rng.choice(len(workload.probability), (trials, batch), p=workload.probability)
        alive = workload.output_tokens[drawn] - 1 > age * n
        tokens += ((workload.input_tokens[drawn] + (age + 1) * n) * alive).sum(axis=1)
    assert (tokens > allowed).mean() < 3 * overflow
    assert allowed < 1.5 * tokens.mean()


def test_arrival_clock_convolves_the_wait() -> None:
    rng = np.random.default_rng(3)
    workload = random_workload(rng)
    lengths = lengths_of(workload, "encode")
    pipeline = random_pipeline(rng, 2, 300)
    batch, n = np.array([4]), np.array([6])
    service = evaluate_rra(pipeline, lengths, Conditions(), batch, n)
    rate = 0.9 * float(service.throughput_rps[0])
    arrival = Conditions(clock="arrival")
    found = evaluate_rra(pipeline, lengths, arrival, batch, n, rate_rps=rate)
    drawn = rng.choice(len(workload.probability), 200_000, p=workload.probability)
    period = float(service.period_s[0])
    periods = np.ceil((workload.output_tokens[drawn] - 1) / 6)
    served = np.where(periods == 0, service.ttft_s[0], periods * period)
    waited = served + rng.uniform(0, period, drawn.size)
    assert found.latency_s[0] == pytest.approx(float(np.quantile(waited, 0.99)), rel=0.01)
    assert found.ttft_s[0] == pytest.approx(service.ttft_s[0] + 0.99 * period)
    for hopeless in (None, 1.1 * float(service.throughput_rps[0])):
        assert np.isinf(evaluate_rra(pipeline, lengths, arrival, batch, n, rate_rps=hopeless).latency_s[0])


def test_quantiles_of_known_distributions() -> None:
    values, weight = np.array([[3.0], [1.0], [2.0]]), np.array([0.2, 0.5, 0.3])
    assert [float(weighted_quantile(values, weight, q)[0]) for q in (0.5, 0.51, 0.8, 0.81)] == [1, 2, 2, 3]
    flat = quantile_with_wait(np.zeros((1, 1)), np.ones(1), np.array([10.0]), 0.25)
    assert flat[0] == pytest.approx(2.5)


def test_beyond_the_tables_is_refused_not_guessed() -> None:
    rng = np.random.default_rng(1)
    lengths = lengths_of(paper_task("S"), "encode")
    found: Points = evaluate_rra(
        random_pipeline(rng, 1, 50), lengths, Conditions(), np.array([1, 60]), np.array([50, 50])
    )
    assert found.throughput_rps[0] > 0
    assert found.throughput_rps[1] == 0
    assert np.isinf(found.latency_s[1])
    assert np.isinf(found.memory_bytes[:, 1]).all()
