"""Plans: deterministic JSON, strict reading, and buckets that hold everything the schedule can ask for."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.facts.model_config import parse_config
from solver.plan.plan import LARGEST_CHUNK_TOKENS, Plan, Prediction, from_json, make_plan
from solver.plan.schedule import EXECUTED_POLICIES, Schedule, StageSpec

SPEC = parse_config(
    {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": 2, "vocab_size": 50, "max_position_embeddings": 8192,
    }
)  # fmt: skip


def plan_of(policy: str = "rra", rows: int = 24, batch: int = 6, cache: int = 1024, prompt: int = 700) -> Plan:
    schedule = Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=batch,
        decode_iterations=8,
        decode_batch=rows,
        max_rows=rows,
        stages=(StageSpec("both", (0, 2), (0, 1), 2),),
        micro_batch=rows,
        encode_micro_batch=batch,
        token_budget=200 if policy == "chunked" else 0,
    )
    return make_plan(
        SPEC,
        schedule,
        model="m",
        dtype="bfloat16",
        cache_dtype="float32",
        cache_tokens=cache,
        max_prompt_tokens=prompt,
    )


def test_a_plan_survives_its_file_byte_for_byte() -> None:
    plan = dataclasses.replace(plan_of(), prediction=Prediction(1.5, 2.0, 0.25, 0.001))
    text = plan.to_json()
    again = from_json(text)
    assert again == plan
    assert again.to_json() == text
    assert again.digest == plan.digest
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_digest_tells_plans_apart() -> None:
    assert plan_of().digest != plan_of(batch=7).digest
    assert plan_of().digest == plan_of().digest


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("model",), 3, "plan.model: 3 is no str"),
        (("cache_tokens",), True, "plan.cache_tokens: True is no int"),
        (("cache_tokens",), "9", "plan.cache_tokens: '9' is no int"),
        (("schema_version",), 99, "schema_version: 99"),
        (("cache_layout",), "heap", "plan.cache_layout: 'heap' is none of slots, paged"),
        (("schedule", "policy"), "magic", "plan.schedule.policy: 'magic' is none of rra"),
        (("schedule", "encode_batch"), 0, "encode_batch: 0 is too small"),
        (("schedule", "speed"), 1, "plan.schedule.speed: unknown field"),
        (("schedule", "stages", 0, "layers"), [0], r"plan.schedule.stages\[0\].layers: 1 entries where 2 belong"),
        (("schedule", "stages", 0, "devices"), [0, 1.5], r"plan.schedule.stages\[0\].devices\[1\]: 1.5 is no int"),
        (("schedule", "stages", 0, "tensor"), 3, "tensor=3 but 2 devices"),
        (("buckets", "decode_rows"), [4, 4], r"buckets.decode_rows: \[4, 4\] is not a rising ladder"),
        (("buckets",), None, "plan.buckets: None is no object"),
        (("prediction",), {"throughput_rps": 1}, "plan.prediction.latency_s: missing"),
        (("max_prompt_tokens",), 5000, "max_prompt_tokens: 5000 leaves no room"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(path: tuple, value: object, complaint: str) -> None:
    data = json.loads(plan_of().to_json())
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=complaint) as caught:
        from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "NaN", "[" * 100_000, "null", '{"model": NaN}'])
def test_what_is_no_plan_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^plan") as caught:
        from_json(text)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 8192), st.integers(1, 9000), st.data())
def test_buckets_hold_whatever_the_schedule_asks(
    rows: int, batch: int, cache: int, prompt: int, data: st.DataObject
) -> None:
    plan = plan_of(data.draw(st.sampled_from(EXECUTED_POLICIES)), rows, min(batch, rows), cache, prompt)
    buckets = plan.buckets
    assert buckets.decode_rows[-1] == rows
    assert buckets.encode_rows[0] == 1
    assert buckets.encode_rows[-1] == min(batch, rows)
    assert buckets.cache_tokens[-1] == cache
    assert buckets.encode_tokens[-1] <= min(plan.max_prompt_tokens, LARGEST_CHUNK_TOKENS)
    for ladder in dataclasses.astuple(buckets):
        assert len(ladder) <= 6  # each rung is programs to compile
    assert from_json(plan.to_json()) == plan


def test_a_row_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_tokens: 9000 exceeds the model's 8192 positions"):
        plan_of(cache=9000)
