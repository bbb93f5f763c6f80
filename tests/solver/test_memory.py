"""Byte accounting against a list of parameters spelled out one by one."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec, Rope
from solver.plan import memory
from solver.plan.buckets import Buckets, ladder
from solver.plan.schedule import Schedule, StageSpec


def make_spec(**changes: object) -> ModelSpec:
    fields: dict = {
        "family": "llama",
        "vocab_size": 101,
        "hidden_size": 32,
        "mlp_size": 64,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 4,
        "layers": (LayerRun(LayerKind(), 3),),
        "max_positions": 64,
        "norm": "rms",
        "norm_eps": 1e-5,
        "activation": "silu",
        "gated_mlp": True,
        "qkv_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "rope": Rope(base=10000.0),
        "position_offset": 0,
        "tied_embeddings": False,
    }
    return ModelSpec(**{**fields, **changes})


def make_stage(layers: tuple[int, int] = (0, 3), tensor: int = 1, role: str = "both") -> StageSpec:
    return StageSpec(role=role, layers=layers, devices=tuple(range(tensor)), tensor=tensor)  # type: ignore[arg-type]


def spelled_out(spec: ModelSpec, stage: StageSpec) -> int:
    """Elements on one device: every parameter with its shape and which dimension is shared."""
    shapes: list[tuple[tuple[int, ...], int | None]] = []
    q, kv = spec.heads * spec.head_dim, spec.stored_kv_heads(stage.tensor) * spec.head_dim
    norm = [((spec.hidden_size,), None)] * (1 if spec.norm == "rms" else 2)
    vocab = ((spec.padded_vocab(stage.tensor), spec.hidden_size), 0)
    for _ in range(*stage.layers):
        for width in (q, kv, kv):
            shapes.append(((spec.hidden_size, width), 1))
            if spec.qkv_bias:
                shapes.append(((width,), 0))
        shapes.append(((q, spec.hidden_size), 0))
        if spec.output_bias:
            shapes.append(((spec.hidden_size,), None))
        for _ in range(2 if spec.gated_mlp else 1):
            shapes.append(((spec.hidden_size, spec.mlp_size), 1))
            if spec.mlp_bias:
                shapes.append(((spec.mlp_size,), 0))
        shapes.append(((spec.mlp_size, spec.hidden_size), 0))
        if spec.mlp_bias:
            shapes.append(((spec.hidden_size,), None))
        shapes += norm + norm
        if spec.qk_norm:
            shapes += [((spec.head_dim,), None)] * 2
    embeds, heads = stage.layers[0] == 0, stage.layers[1] == spec.num_layers
    if embeds:
        shapes.append(vocab)
        if spec.rope is None:
            shapes.append(((spec.max_positions + spec.position_offset, spec.hidden_size), None))
    if heads:
        shapes += norm
        if not (spec.tied_embeddings and embeds):
            shapes.append(vocab)
    total = 0
    for shape, shared in shapes:
        assert shared is None or shape[shared] % stage.tensor == 0
        total += math.prod(shape) // (1 if shared is None else stage.tensor)
    return total


flags = st.booleans()
specs = st.builds(
    lambda norm, rope, kv_heads, vocab_size, **switches: make_spec(
        norm=norm, rope=rope, position_offset=0 if rope else 2, kv_heads=kv_heads, vocab_size=vocab_size, **switches
    ),
    norm=st.sampled_from(["rms", "layer"]),
    rope=st.sampled_from([None, Rope(base=1e4)]),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    vocab_size=st.integers(1, 300),
    gated_mlp=flags,
    qkv_bias=flags,
    output_bias=flags,
    mlp_bias=flags,
    qk_norm=flags,
    tied_embeddings=flags,
)


@given(spec=specs, tensor=st.sampled_from([1, 2, 4, 8]), layers=st.sampled_from([(0, 3), (0, 1), (1, 2), (1, 3)]))
@settings(max_examples=150, deadline=None)
def test_weights_equal_the_list(spec: ModelSpec, tensor: int, layers: tuple[int, int]) -> None:
    stage = make_stage(layers, tensor)
    assert memory.weight_bytes(spec, stage, "float32") == 4 * spelled_out(spec, stage)
    assert memory.weight_bytes(spec, stage, "bfloat16") == 2 * spelled_out(spec, stage)


def test_known_model_size() -> None:
    """Llama 2 7B has 6,738,415,616 parameters."""
    spec = make_spec(
        vocab_size=32000, hidden_size=4096, mlp_size=11008, heads=32, kv_heads=32, head_dim=128,
        layers=(LayerRun(LayerKind(), 32),),
    )  # fmt: skip
    assert memory.weight_bytes(spec, make_stage((0, 32)), "bfloat16") == 2 * 6_738_415_616
    assert memory.cache_row_bytes(spec, make_stage((0, 32)), 1, "bfloat16") == 524_288


def test_cache_counts_repeated_heads() -> None:
    spec = make_spec(kv_heads=2)
    one, two, eight = (memory.cache_row_bytes(spec, make_stage(tensor=t), 10, "float32") for t in (1, 2, 8))
    assert one == 2 * 3 * 10 * 2 * 4 * 4
    assert (two, eight) == (one // 2, one // 2)


def test_stages_share_the_model() -> None:
    spec = make_spec()
    parts = [memory.weight_bytes(spec, make_stage(layers), "float32") for layers in ((0, 1), (1, 3))]
    assert sum(parts) == memory.weight_bytes(spec, make_stage(), "float32")


def make_schedule(rows: int, stages: tuple[StageSpec, ...]) -> tuple[Schedule, Buckets]:
    schedule = Schedule(
        policy="rra", encode_batch=1, decode_iterations=4, decode_batch=rows, max_rows=rows, stages=stages,
        micro_batch=rows, encode_micro_batch=1,
    )  # fmt: skip
    buckets = Buckets(encode_rows=(1,), encode_tokens=(8, 16), decode_rows=ladder(1, rows), cache_tokens=(16, 32, 64))
    return schedule, buckets


def table(spec: ModelSpec, rows: int, *stages: StageSpec) -> tuple[memory.DeviceMemory, ...]:
    return memory.memory_table(spec, *make_schedule(rows, stages), dtype="float32", cache_dtype="float32")


def test_view_is_the_largest_bucket_below_full() -> None:
    spec, stage = make_spec(), make_stage()
    _, buckets = make_schedule(6, (stage,))
    token = memory.cache_row_bytes(spec, stage, 1, "float32")
    brute = max(r * t for r in buckets.decode_rows for t in buckets.cache_tokens if (r, t) != (6, 64))
    assert memory.view_bytes(spec, stage, buckets, "float32") == brute * token
    single = dataclasses.replace(buckets, decode_rows=(6,), cache_tokens=(64,))
    assert memory.view_bytes(spec, stage, single, "float32") == 0


def test_table_has_one_line_per_device() -> None:
    spec = make_spec()
    stages = (
        StageSpec("both", (0, 1), (0, 1), 2),
        StageSpec("both", (1, 3), (2,), 1),
    )
    lines = table(spec, 4, *stages)
    assert [(line.stage, line.device) for line in lines] == [(0, 0), (0, 1), (1, 2)]
    assert lines[0].counts_bytes == 0 < lines[2].counts_bytes
    assert lines[2].cache_bytes == 4 * memory.cache_row_bytes(spec, stages[1], 64, "float32")


def test_encode_stage_has_no_cache() -> None:
    lines = table(make_spec(), 4, make_stage(role="encode"), make_stage(role="decode"))
    assert lines[0].cache_bytes == 0 < lines[1].cache_bytes


@given(usable=st.integers(0, 3_000_000), limit=st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_rows_that_fit_is_the_largest(usable: int, limit: int) -> None:
    spec, stage = make_spec(), make_stage()

    def needed(rows: int) -> int:
        return table(spec, rows, stage)[0].total_bytes

    fitting = [rows for rows in range(1, limit + 1) if needed(rows) <= usable]
    if fitting:
        assert memory.rows_that_fit(lambda rows: table(spec, rows, stage), usable, limit) == fitting[-1]
    else:
        with pytest.raises(ValueError, match="--memory_fraction") as failure:
            memory.rows_that_fit(lambda rows: table(spec, rows, stage), usable, limit)
        assert "--max_rows" in str(failure.value)
        assert "--cache_tokens" in str(failure.value)
        assert "\n" not in str(failure.value)


def test_dtype_is_named() -> None:
    with pytest.raises(ValueError, match=r"int3.*bfloat16"):
        memory.weight_bytes(make_spec(), make_stage(), "int3")


@pytest.mark.parametrize(("size", "text"), [(5, "5 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 40, "5 TiB")])
def test_bytes_read_well(size: int, text: str) -> None:
    assert memory.format_bytes(size) == text
