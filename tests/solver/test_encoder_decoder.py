"""Planning for T5: bytes and times of its two stacks, and plans that hold when they are worked out again."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from solver.facts import presets
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import Mark, Profile
from solver.facts.profile_file import find_profile
from solver.facts.workload import Workload
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds
from solver.plan.memory import by_device, cache_row_bytes, memory_table, weight_bytes
from solver.plan.plan import make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.search.planner import plan_schedule
from solver.search.request import PlanRequest
from solver.simulate.from_plan import machines_of
from solver.simulate.memory import block_bytes, cache_token_bytes, embed_bytes, head_bytes

ENCODER, DECODER = LayerKind("encoder"), LayerKind("cross")


@functools.cache
def spec() -> ModelSpec:
    return read_model_spec(presets.find("models", "t5-11b"))


@functools.cache
def profile() -> Profile:
    return find_profile(spec(), "a100-80g", "bfloat16")


@functools.cache
def workload() -> Workload:
    return load_workload("paper-s")


def test_decoder_layers_alone_hold_a_cache() -> None:
    whole = StageSpec("both", (0, 48), (0, 1), 2)
    assert cache_row_bytes(spec(), whole, 10, "bfloat16") == 2 * 24 * 10 * 64 * 128 * 2
    encoder, decoder = (StageSpec("both", layers, (0, 1), 2) for layers in ((0, 24), (24, 48)))
    assert cache_row_bytes(spec(), encoder, 10, "bfloat16") == 0
    assert cache_row_bytes(spec(), decoder, 10, "bfloat16") == cache_row_bytes(spec(), whole, 10, "bfloat16")
    # Each of the two has the embedding, which the head shares with the decoder's.
    apart = sum(weight_bytes(spec(), stage, "bfloat16") for stage in (encoder, decoder))
    assert apart - weight_bytes(spec(), whole, "bfloat16") == 32128 // 2 * 1024 * 2


@pytest.mark.parametrize("tensor", [1, 4])
def test_mean_layers_and_ends_add_up_to_the_whole(tensor: int) -> None:
    stage = StageSpec("both", (0, 48), tuple(range(tensor)), tensor)
    ends = embed_bytes(spec(), tensor, "bfloat16") + head_bytes(spec(), tensor, "bfloat16")
    found = 48 * block_bytes(spec(), tensor, "bfloat16") + ends
    assert 0 <= weight_bytes(spec(), stage, "bfloat16") - found < 48
    assert 48 * cache_token_bytes(spec(), tensor, "bfloat16") == cache_row_bytes(spec(), stage, 1, "bfloat16")


def test_stages_on_one_device_are_counted_together() -> None:
    stages = (StageSpec("encode", (0, 24), (0,), 1), StageSpec("decode", (24, 48), (0,), 1))
    schedule = Schedule("rra", 2, 4, 8, 8, stages, 8, 2)
    table = memory_table(spec(), schedule, make_buckets(schedule, 512, 256), "bfloat16", "bfloat16")
    (together,) = by_device(table)
    assert together.total_bytes == sum(memory.total_bytes for memory in table)
    assert table[0].cache_bytes == table[0].counts_bytes == 0
    assert table[1].cache_bytes == 8 * cache_row_bytes(spec(), stages[1], 512, "bfloat16")


def test_shipped_profiles_tell_the_stacks_apart() -> None:
    for kind in ("a100-80g", "h100-80g", "h200-141g", "a40-48g"):
        found = find_profile(spec(), kind, "bfloat16")
        assert found.tensor_degrees == (1, 2, 4, 8)
        encoder, decoder = (found.layer(1, each) for each in (ENCODER, DECODER))
        assert not encoder.decode.seconds.any()
        # Of a prompt a decoder layer makes keys and values: two products of an encoder layer's six or so.
        share = decoder.encode.seconds[-1, 8:] / encoder.encode.seconds[-1, 8:]
        assert (share > 0.02).all()
        assert (share < 0.4).all()
        assert encoder.encode.marks.max() == decoder.decode.marks.max() == Mark.ESTIMATED
        assert (np.diff(decoder.decode.seconds[:, -1]) > 0).all()


def request(**changes: object) -> PlanRequest:
    cluster = load_cluster("dgx-a100", 2)
    made = PlanRequest(
        spec(), "t5-11b", cluster, (profile(),), workload(), Bounds(latency_s=6.0), ("rra",), gap=0.05, node_limit=300
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_plans_have_the_whole_model_on_one_stage() -> None:
    """Every token takes a decode iteration, so S of them take S; what cannot be planned says so."""
    plan = plan_schedule(request(policies=("rra", "waa"))).plan
    (stage,) = plan.schedule.stages
    assert (stage.role, stage.layers, plan.first_token) == ("both", (0, 48), "decode")
    assert plan.prediction is not None
    assert plan.prediction.worst_mark == "estimated"
    period, iterations = plan.prediction.period_s, plan.schedule.decode_iterations
    assert plan.prediction.latency_s >= period * (workload().output_percentile(99.0) / iterations - 1)
    cut = dataclasses.replace(
        plan.schedule, stages=(StageSpec("both", (0, 9), (0,), 1), StageSpec("both", (9, 48), (1,), 1))
    )
    cluster = load_cluster("dgx-a100", 2)
    with pytest.raises(ValueError, match=r"schedule\.stages: 2 stages of t5, whose layers are not alike"):
        machines_of(
            dataclasses.replace(plan, schedule=cut, memory=(), prediction=None),
            spec(),
            cluster,
            (profile(),),
            workload(),
        )
    assert machines_of(plan, spec(), cluster, (profile(),), workload()).encode.stages[0].layers == 48
    (waa,) = plan.runners_up
    assert (waa.policy, waa.reason) == ("waa", "not planned for t5, whose encoder stands apart")


def test_prompts_beyond_an_encode_call_are_refused() -> None:
    long = load_workload("paper-c2")
    with pytest.raises(
        ValueError, match="workload: paper-c2 has prompts of 1024 tokens, the encoder of t5 reads at most"
    ):
        plan_schedule(request(workload=long))
