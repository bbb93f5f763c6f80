"""WAA and the baselines against fixed points, enumerations and simulations written apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solver.facts.cluster import Link
from solver.simulate.chunked import evaluate_chunked
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.costs import Pipeline
from solver.simulate.lengths import lengths_of, residents
from solver.simulate.points import Conditions
from solver.simulate.static import evaluate_static
from solver.simulate.waa import Split, evaluate_waa, waa_split
from tests.solver.planner_cases import paper_task, random_pipeline, random_unit, random_workload

BY_ITERATION = Conditions(compaction="iteration", delivery="iteration")
LINK = Link(1e-5, 1e10)


def iteration_s(pipeline: Pipeline, rows: float, context: float, parts: int = 1) -> float:
    """T_D from the definition."""
    x = [float(t) for t in pipeline.decode_s(np.array(rows / parts), np.array(context))]
    return max(parts * max(x), sum(x) + pipeline.return_s * (len(x) > 1))


def drained_s(pipeline: Pipeline, rows: float, context: float, parts: int = 1) -> float:
    x = [float(t) for t in pipeline.decode_s(np.array(rows / parts), np.array(context))]
    return sum(x) + (parts - 1) * max(x) + pipeline.return_s * (len(x) > 1)


def encode_s(pipeline: Pipeline, rows: float, parts: int = 1) -> float:
    x = [float(t) for t in pipeline.encode_s(np.array(rows / parts))]
    return sum(x) + (parts - 1) * max(x)


@pytest.mark.parametrize("ragged", [False, True])
def test_waa_balances_by_littles_law(ragged: bool) -> None:
    rng = np.random.default_rng(21)
    bound_by_encode = 0
    for case in range(40):
        lengths = lengths_of(random_workload(rng, most_output=30), "encode")
        encode, decode = (random_pipeline(rng, int(rng.integers(1, 4)), 300, ragged=ragged) for _ in range(2))
        batch, cap, parts = int(rng.integers(1, 20)), int(rng.integers(1, 200)), 1 + case % 3
        found = evaluate_waa(
            Split(encode, decode, LINK), lengths, BY_ITERATION, np.array([batch]), np.array([cap]), parts
        )
        context = float(residents(lengths, 1).context[0])
        times = [iteration_s(decode, b, context, parts) for b in range(1, cap + 1)]
        ending = [b / (lengths.mean_decode * t) for b, t in zip(range(1, cap + 1), times, strict=True)]
        moved = max(s.layers * s.unit.cache_token_bytes for s in encode.stages) * lengths.mean_input * batch
        stages = [float(t) for t in encode.encode_s(np.array(float(batch)))]
        coming = batch / max(*stages, float(LINK.transfer_s(moved)))
        rows, rate = float(found.decode_batch[0]), min(coming, max(ending))
        assert found.throughput_rps[0] == pytest.approx(rate)
        # Between whole rows the side's time is the straight line between theirs.
        seconds = float(np.interp(rows, range(cap + 1), [0.0, *times]))
        assert rows == pytest.approx(rate * lengths.mean_decode * seconds, rel=1e-9)
        if coming < max(ending):
            bound_by_encode += 1
            assert all(e < coming for b, e in zip(range(1, cap + 1), ending, strict=True) if b < rows - 1e-9)
        d99 = lengths.decode_percentile(99)
        expected = sum(stages) + (float(LINK.transfer_s(moved)) + (d99 + 1) * seconds if d99 else 0.0)
        assert found.latency_s[0] == pytest.approx(expected)
        assert found.ttft_s[0] == pytest.approx(sum(stages))
        assert found.max_rows[0] >= rows - 1
    assert 3 < bound_by_encode < 37


def test_replicas_multiply_capacity_and_splits_follow_their_measure() -> None:
    rng = np.random.default_rng(22)
    lengths = lengths_of(paper_task("T"), "encode")
    encode, decode = random_pipeline(rng, 2, 500), random_pipeline(rng, 2, 500)
    one = evaluate_waa(Split(encode, decode, LINK), lengths, BY_ITERATION, np.array([4]), np.array([300]))
    two = evaluate_waa(Split(encode, decode, LINK, 2, 2), lengths, BY_ITERATION, np.array([4]), np.array([300]))
    assert two.throughput_rps[0] == pytest.approx(2 * one.throughput_rps[0])
    assert two.latency_s[0] == pytest.approx(one.latency_s[0])
    assert two.memory_bytes.shape == (4, 1)
    unit = random_unit(rng, 500)
    for by in ("computation", "memory"):
        assert 1 <= waa_split(unit, lengths, 8, 8, 4, 200, by) <= 7
    short = lengths_of(random_workload(rng, most_input=2000, most_output=3), "encode")
    assert waa_split(unit, short, 8, 8, 4, 200, "computation") > waa_split(unit, lengths, 8, 8, 4, 200, "computation")
    with pytest.raises(ValueError, match="devices"):
        waa_split(unit, lengths, 8, 1, 4, 200, "memory")


@pytest.mark.parametrize("dispatch", [1, 4])
def test_static_is_the_mean_over_every_batch(dispatch: int) -> None:
    """All pairs of requests, enumerated."""
    rng = np.random.default_rng(23)
    for case in range(6):
        workload = random_workload(rng, pairs=8, most_output=15)
        lengths = lengths_of(workload, "encode")
        pipeline = random_pipeline(rng, 1 + case % 3, 20, ragged=True)
        conditions = BY_ITERATION if dispatch == 1 else Conditions()
        found = evaluate_static(pipeline, lengths, conditions, np.array([2]), dispatch, 2, 1)
        decoding = workload.output_tokens > 1
        share = float(workload.probability[decoding].sum())
        mean_input = float(workload.probability[decoding] @ workload.input_tokens[decoding]) / share
        spent = np.concatenate(
            [[0.0], np.cumsum([iteration_s(pipeline, 2 * share, mean_input + u) for u in range(40)])]
        )
        cases = list(zip(workload.output_tokens - 1, workload.probability, strict=True))
        encode, period = encode_s(pipeline, 2, 2), 0.0
        for (d1, p1), (d2, p2) in itertools.product(cases, cases):
            period += p1 * p2 * (encode + spent[max(d1, d2)])
        assert found.throughput_rps[0] == pytest.approx(2 / period)
        d99 = lengths.decode_percentile(99)
        assert found.latency_s[0] == pytest.approx(encode + spent[-(-d99 // dispatch) * dispatch])


def test_a_barrier_drains_every_dispatch() -> None:
    rng = np.random.default_rng(28)
    lengths = lengths_of(paper_task("S"), "encode")
    pipeline, rows = random_pipeline(rng, 3, 60), np.array([30])
    whole, context = evaluate_static(pipeline, lengths, BY_ITERATION, rows, 1000, 3, 3), lengths.input_alive[1]
    every = evaluate_static(pipeline, lengths, BY_ITERATION, rows, 1, 3, 3)
    seamless = evaluate_static(pipeline, lengths, BY_ITERATION, rows, 1, 3, 3, seamless=True)
    assert seamless.period_s == pytest.approx(whole.period_s)
    d99, share = lengths.decode_percentile(99), float(lengths.alive[1])
    drained = [drained_s(pipeline, 30 * share, float(context) / share + u, 3) for u in range(d99)]
    assert every.latency_s[0] == pytest.approx(encode_s(pipeline, 30, 3) + sum(drained))


def test_dsi_cuts_prompts_and_tokens_apart() -> None:
    rng = np.random.default_rng(24)
    lengths = lengths_of(paper_task("G"), "encode")
    pipeline = random_pipeline(rng, 4, 200)
    parts = np.arange(1, 9)
    both = evaluate_static(pipeline, lengths, BY_ITERATION, np.array([64]), 1, parts, parts)
    grid_e, grid_d = (g.ravel() for g in np.meshgrid(parts, parts))
    free = evaluate_static(pipeline, lengths, BY_ITERATION, np.array([64]), 1, grid_e, grid_d)
    assert free.throughput_rps.max() >= both.throughput_rps.max()
    same = free.throughput_rps[grid_e == grid_d]
    assert same == pytest.approx(both.throughput_rps)


def test_iteration_refills_like_slots_that_never_stand_empty() -> None:
    """Slots simulated request by request, under saturation."""
    rng = np.random.default_rng(25)
    workload = random_workload(rng, most_output=30)
    lengths = lengths_of(workload, "encode")
    pipeline = random_pipeline(rng, 2, 64)
    slots, parts, rounds = 40, 2, 6000
    found = evaluate_iteration(pipeline, lengths, BY_ITERATION, np.array([slots]), 1, parts)
    context = float(residents(lengths, 1).context[0])
    decode = drained_s(pipeline, slots, context, parts)
    steps = workload.output_tokens - 1
    left, elapsed, done = np.zeros(slots, np.int64), 0.0, 0
    for _ in range(rounds):
        admitted = 0
        while (empty := np.flatnonzero(left == 0)).size:
            left[empty] = rng.choice(steps, empty.size, p=workload.probability)
            admitted += empty.size
        elapsed += encode_s(pipeline, min(admitted, slots)) + decode
        done += admitted
        left -= 1
    assert found.throughput_rps[0] == pytest.approx(done / elapsed, rel=0.02)
    assert found.decode_phase_s[0] == pytest.approx(decode)
    d99 = lengths.decode_percentile(99)
    assert found.latency_s[0] == pytest.approx(d99 * elapsed / rounds, rel=0.03)


def test_chunked_keeps_to_its_budget() -> None:
    rng = np.random.default_rng(26)
    lengths = lengths_of(paper_task("C1"), "encode")
    pipeline = random_pipeline(rng, 1, 3000)
    budget, cap = np.array([64, 256, 1024, 1024, 8]), np.array([2000, 2000, 2000, 20, 2000])
    found = evaluate_chunked(pipeline, lengths, BY_ITERATION, budget, cap, fused=False)
    mean_i, mean_d = lengths.mean_input, lengths.mean_decode
    for at in range(4):
        rows = float(found.decode_batch[at])
        assert rows <= min(cap[at], budget[at] * mean_d / (mean_i + mean_d)) + 1e-9
        if at < 3:
            assert rows == pytest.approx(budget[at] * mean_d / (mean_i + mean_d))
        seconds = float(found.period_s[at])
        limit = min((budget[at] - rows) / mean_i, rows / mean_d) / seconds
        assert found.throughput_rps[at] == pytest.approx(limit)
        prompts = rows / mean_d
        context = float(residents(lengths, 1).context[0])
        assert seconds == pytest.approx(encode_s(pipeline, prompts) + iteration_s(pipeline, rows, context))
        assert found.tpot_s[at] == pytest.approx(seconds)
        longest = np.ceil(lengths.workload.input_tokens / (budget[at] - rows)).max()
        assert found.ttft_s[at] <= longest * seconds * (1 + 1e-9)
    encoding = found.throughput_rps[3] * np.mean(found.ttft_s[3] - found.period_s[3])
    assert float(found.decode_batch[3]) == pytest.approx(20 - encoding, abs=1.0)
    fused = evaluate_chunked(pipeline, lengths, BY_ITERATION, budget, cap)
    assert np.all(fused.throughput_rps[:4] >= found.throughput_rps[:4])
