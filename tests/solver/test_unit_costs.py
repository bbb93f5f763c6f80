"""Costs from profiles: the equivalent uniform batch, layer kinds, padding and bytes as the engine has them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from solver.facts.model_spec import LayerRun
from solver.facts.profile import Mark, Profile, Table
from solver.plan.memory import memory_table
from solver.plan.packing import pack
from solver.plan.plan import encode_call_rows, make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.chunked import evaluate_chunked
from solver.simulate.continuous import evaluate_iteration
from solver.simulate.costs import Pipeline, PlacedStage
from solver.simulate.lengths import lengths_of
from solver.simulate.memory import MemoryModel
from solver.simulate.padding import Padding, decode_mixture, encode_calls, reach_shares
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from solver.simulate.static import evaluate_static
from solver.simulate.unit_costs import unit_costs
from tests.solver.planner_cases import paper_task, random_profile, random_workload, small_cluster, small_spec

SPEC = small_spec(6, window=32)


def table(seconds: np.ndarray, first: np.ndarray, second: np.ndarray) -> Table:
    return Table(first, second, seconds, np.zeros(seconds.shape, np.uint8))


def polynomial_profile(per_token_s: float, per_square_s: float) -> Profile:
    """Encode costs tokens and squared lengths exactly, on a grid so fine that its straight lines do not show."""
    profile = random_profile(np.random.default_rng(0), SPEC)
    rows, tokens = np.array([0.1, 1.0, 1000.0]), np.arange(1.0, 600.0)
    seconds = rows[:, None] * (per_token_s * tokens + per_square_s * tokens**2)
    layers = tuple(dataclasses.replace(times, encode=table(seconds, rows, tokens)) for times in profile.layers)
    return dataclasses.replace(profile, layers=layers)


def test_mixed_prompts_cost_their_tokens_and_their_squares() -> None:
    workload = paper_task("S")
    lengths = lengths_of(workload, "encode")
    unit = unit_costs(polynomial_profile(2e-6, 3e-9), SPEC, lengths, small_cluster(), 1, 40)
    prompts, p = workload.input_tokens.astype(float), workload.probability
    expected = np.arange(41) * float(p @ (2e-6 * prompts + 3e-9 * prompts**2))
    assert unit.encode_s == pytest.approx(expected, rel=1e-4)
    mean_length = 40 * (2e-6 * workload.mean_input + 3e-9 * workload.mean_input**2)
    assert unit.encode_s[40] > 1.03 * mean_length


def test_one_prompt_costs_the_mean_over_its_lengths() -> None:
    """Where the table begins at one row, a mix of one row cannot be looked up as fewer rows of longer prompts."""
    workload = paper_task("S")
    profile = polynomial_profile(2e-6, 3e-9)
    layers = tuple(
        dataclasses.replace(times, encode=table(times.encode.seconds[1:], times.encode.first[1:], times.encode.second))
        for times in profile.layers
    )
    profile = dataclasses.replace(profile, layers=layers)
    unit = unit_costs(profile, SPEC, lengths_of(workload, "encode"), small_cluster(), 1, 4)
    prompts, p = workload.input_tokens.astype(float), workload.probability
    expected = float(p @ (2e-6 * prompts + 3e-9 * prompts**2))
    assert unit.encode_s[1] == pytest.approx(expected, rel=1e-9)
    longer = float(p @ prompts**2 / (p @ prompts))
    assert 2e-6 * longer + 3e-9 * longer**2 > 1.05 * expected


def test_layer_kinds_hand_overs_and_dispatch() -> None:
    rng = np.random.default_rng(1)
    spec = dataclasses.replace(SPEC, layers=(*SPEC.layers, LayerRun(SPEC.layers[0].kind, 2)))
    profile, cluster = random_profile(rng, spec), small_cluster()
    lengths = lengths_of(random_workload(rng), "encode")
    unit = unit_costs(profile, spec, lengths, cluster, 2, 16)
    (full, sliding) = (profile.layer(2, run.kind) for run in spec.layers[:2])
    context = unit.contexts[1]
    expected = (5 * full.decode.at(7.0, context) + 3 * sliding.decode.at(7.0, context)) / 8
    assert unit.decode_s[1, 7] == pytest.approx(float(expected))
    size = 7 * lengths.mean_input * spec.hidden_size * 4
    assert unit.hand_over_encode_s["pod"][7] == pytest.approx(float(cluster.pod.transfer_s(size)) + profile.dispatch_s)
    assert unit.hand_over_decode_s["host"][7] == pytest.approx(
        float(cluster.host.transfer_s(7 * spec.hidden_size * 4)) + profile.dispatch_s
    )
    assert unit.head_decode_s[7] == pytest.approx(float(profile.end(2).head.at(7.0, 0.0)) + profile.dispatch_s)
    for column in (unit.encode_s, unit.decode_s, unit.head_decode_s, unit.hand_over_encode_s["island"]):
        assert np.all(column[..., 0] == 0)
        assert np.all(column[..., 1:] > 0)


def test_what_was_not_measured_is_refused_or_marked() -> None:
    rng = np.random.default_rng(2)
    lengths = lengths_of(random_workload(rng), "encode")
    profile = random_profile(rng, SPEC, tensors=(1,))
    assert not unit_costs(profile, SPEC, lengths, small_cluster(), 1, 64).estimated
    assert unit_costs(profile, SPEC, lengths, small_cluster(), 1, 400).estimated
    guessed = profile.layers[0].decode
    marks = np.full_like(guessed.marks, Mark.ESTIMATED)
    layers = (dataclasses.replace(profile.layers[0], decode=dataclasses.replace(guessed, marks=marks)),)
    marked = dataclasses.replace(profile, layers=layers + profile.layers[1:])
    assert unit_costs(marked, SPEC, lengths, small_cluster(), 1, 64).estimated
    with pytest.raises(ValueError, match="tensor=2"):
        unit_costs(profile, SPEC, lengths, small_cluster(), 2, 64)
    with pytest.raises(ValueError, match="padding"):
        unit_costs(profile, SPEC, lengths, small_cluster(), 1, 64, Padding(256, 128))
    with pytest.raises(ValueError, match="padding"):
        unit_costs(dataclasses.replace(profile, padded=True), SPEC, lengths, small_cluster(), 1, 64)


@pytest.mark.parametrize("batch", [1, 3, 8, 24])
def test_padded_encode_is_the_mean_over_drawn_batches(batch: int) -> None:
    rng = np.random.default_rng(4)
    workload = random_workload(rng, most_input=200)
    lengths, padding = lengths_of(workload, "encode"), Padding(256, 200)
    profile = random_profile(rng, SPEC, padded=True)
    unit = unit_costs(profile, SPEC, lengths, small_cluster(), 1, 24, padding)
    buckets = padding.buckets(batch, batch)
    mean_s, calls = 0.0, 0.0
    kinds = [(profile.layer(1, run.kind), run.count / 6) for run in SPEC.layers]
    draws = 600
    for _ in range(draws):
        drawn = rng.choice(workload.input_tokens, batch, p=workload.probability)
        for call in pack([int(n) for n in drawn], buckets):
            calls += 1 / draws
            for times, share in kinds:
                mean_s += share * float(times.encode.at(float(call.rows_bucket), float(call.tokens_bucket))) / draws
    assert unit.encode_s[batch] == pytest.approx(mean_s, rel=0.05)
    assert sum(count for count, _, _ in encode_calls(padding, lengths, batch)) == pytest.approx(calls, rel=0.05)


def test_long_prompts_are_counted_in_chunks() -> None:
    lengths = lengths_of(random_workload(np.random.default_rng(8), most_input=200), "encode")
    long = dataclasses.replace(lengths.workload, input_tokens=np.full_like(lengths.workload.input_tokens, 1200))
    ((count, rows, tokens),) = encode_calls(Padding(2048, 1200), lengths_of(long, "encode"), 2)
    assert (rows, tokens) == (1, 512)
    assert count == pytest.approx(6.0)


@pytest.mark.parametrize("n", [1, 5, 16, 60])
def test_reach_of_residents(n: int) -> None:
    """Every age of every resident counted one by one."""
    workload = random_workload(np.random.default_rng(n), most_input=180, most_output=60)
    lengths, padding = lengths_of(workload, "encode"), Padding(256, 190)
    total, within = 0.0, np.zeros(len(padding.cache_rungs))
    for i, s, p in zip(workload.input_tokens, workload.output_tokens, workload.probability, strict=True):
        for age in range(-(-(s - 1) // n)):
            total += p
            reach = i + min((age + 1) * n, lengths.most_decode)
            within += p * (reach <= np.array(padding.cache_rungs))
    assert reach_shares(padding, lengths, n) == pytest.approx(within / total)


def test_decode_calls_of_a_phase_are_a_distribution() -> None:
    lengths, padding = lengths_of(random_workload(np.random.default_rng(6)), "encode"), Padding(256, 200)
    rows, most = np.array([5.0, 20.0, 31.0]), np.array([8, 32, 32])
    share, rungs, attended = decode_mixture(padding, lengths, 8, rows, np.sqrt(rows) / 2, most)
    assert share.shape == rungs.shape == (len(attended), 3)
    assert share.sum(axis=0) == pytest.approx(np.ones(3))
    mean = (share * rungs).sum(axis=0)
    assert np.all((mean >= rows) & (mean <= most))


def test_padded_points_of_certain_lengths_are_one_call_each() -> None:
    """One length only: every call's shape is known, so the period is a sum of three look-ups."""
    rng = np.random.default_rng(9)
    workload = random_workload(rng, pairs=1)
    workload = dataclasses.replace(workload, input_tokens=np.array([100]), output_tokens=np.array([17]))
    lengths, padding = lengths_of(workload, "encode"), Padding(256, 128)
    profile = random_profile(rng, small_spec(3), padded=True)
    unit = unit_costs(profile, small_spec(3), lengths, small_cluster(), 1, 16, padding)
    pipeline = Pipeline((PlacedStage(unit, 3, True, True, None),))
    found = evaluate_rra(pipeline, lengths, Conditions(), np.array([4]), np.array([8]), padding=padding)
    times, ends = profile.layers[0], profile.ends[0]
    encode = 3 * times.encode.at(4.0, 128.0) + ends.embed.at(512.0, 0.0) + ends.head.at(4.0, 0.0) + profile.dispatch_s
    step = 3 * times.decode.at(8.0, 128.0) + ends.embed.at(8.0, 0.0) + ends.head.at(8.0, 0.0)
    assert padding.cache_rungs == (64, 128, 256)
    assert found.max_rows[0] == 8
    assert found.encode_s[0] == pytest.approx(float(encode))
    assert found.decode_phase_s[0] == pytest.approx(8 * float(step) + profile.phase_s)
    assert found.latency_s[0] == pytest.approx(2 * found.period_s[0])
    # The other policies on the same engine: four rows of static, eight slots refilled before each iteration.
    step_4 = 3 * times.decode.at(4.0, 128.0) + ends.embed.at(4.0, 0.0) + ends.head.at(4.0, 0.0)
    batch = evaluate_static(pipeline, lengths, Conditions(), np.array([4]), 16, padding=padding)
    assert batch.period_s[0] == pytest.approx(float(encode) + 16 * float(step_4) + profile.phase_s)
    slots = evaluate_iteration(pipeline, lengths, Conditions(), np.array([8]), padding=padding)
    whole = 3 * times.decode.at(8.0, 256.0) + ends.embed.at(8.0, 0.0) + ends.head.at(8.0, 0.0)
    assert slots.decode_phase_s[0] == pytest.approx(float(whole) + profile.phase_s)
    chunks = evaluate_chunked(pipeline, lengths, Conditions(), np.array([200]), np.array([8]), padding=padding)
    assert chunks.decode_phase_s[0] == pytest.approx(float(whole) + profile.phase_s)


@pytest.mark.parametrize("role", ["both", "encode", "decode"])
def test_memory_of_candidates_is_the_engines(role: str) -> None:
    rng = np.random.default_rng(12)
    for _ in range(25):
        layers = int(rng.integers(2, 9))
        spec = dataclasses.replace(small_spec(layers), tied_embeddings=bool(rng.integers(2)))
        cuts = np.unique([0, layers, *rng.integers(1, layers, int(rng.integers(0, 3)))])
        tensors = [int(2 ** rng.integers(0, 3)) for _ in cuts[1:]]
        profile = random_profile(rng, spec)
        lengths = lengths_of(random_workload(rng), "encode")
        units = {t: unit_costs(profile, spec, lengths, small_cluster(), t, 8) for t in set(tensors)}
        placed, specs, device = [], [], 0
        for (first, end), t in zip(np.stack([cuts[:-1], cuts[1:]], axis=1), tensors, strict=True):
            last = end == layers
            placed.append(PlacedStage(units[t], int(end - first), first == 0, bool(last), None if last else "host"))
            specs.append(StageSpec(role, (int(first), int(end)), tuple(range(device, device + t)), t))  # type: ignore
            device += t
        rows, micro = rng.integers(1, 60, 5), rng.integers(1, 20, 5)
        model = MemoryModel(spec, "bfloat16", "float32", 300, 200)
        found = model.stages_bytes(Pipeline(tuple(placed)), role, rows, micro, None)  # type: ignore
        for at in range(5):
            schedule = Schedule("rra", 1, 1, 1, int(rows[at]), tuple(specs), 1, int(micro[at]))
            buckets = make_buckets(schedule, 300, 200)
            totals = {m.stage: m.total_bytes for m in memory_table(spec, schedule, buckets, "bfloat16", "float32")}
            assert found[:, at].tolist() == [totals[stage] for stage in range(len(placed))]


def test_bytes_of_units_add_up_to_the_engines() -> None:
    """Untied, first and last stage apart: layers, embedding, head and cache are what `memory_table` counts."""
    rng = np.random.default_rng(13)
    spec = small_spec(5)
    unit = unit_costs(
        random_profile(rng, spec), spec, lengths_of(random_workload(rng), "encode"), small_cluster(), 2, 8
    )
    stages = (StageSpec("both", (0, 2), (0, 1), 2), StageSpec("both", (2, 5), (2, 3), 2))
    schedule = Schedule("rra", 1, 1, 1, 7, stages, 1, 1)
    found = memory_table(spec, schedule, make_buckets(schedule, 300, 200), "float32", "float32")
    assert found[0].weights_bytes == 2 * unit.weights_bytes + unit.embed_bytes
    assert found[2].weights_bytes == 3 * unit.weights_bytes + unit.head_bytes
    assert found[2].cache_bytes == 3 * unit.cache_token_bytes * 7 * 300


def test_encode_calls_hold_what_the_runner_lets_them() -> None:
    assert encode_call_rows(100, 512) == 16
    assert encode_call_rows(100, 4096) == 16
    assert encode_call_rows(100, 100) == 81
    assert encode_call_rows(3, 512) == 3
