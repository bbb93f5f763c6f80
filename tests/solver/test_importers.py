"""Importers: units, composition by independent arithmetic, head counts that no table holds, refusals."""

from __future__ import annotations

import csv
import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.facts.presets import CONFIGS
from solver.facts.profile import Mark, Profile
from solver.facts.profile_file import check_profile, digest, find_profile
from solver.facts.profile_marks import mark_at
from solver.importers import attention, collectives, gemm, log_grid, parts
from solver.importers.compose import compose
from solver.importers.devices import DEVICES, table_device
from solver.importers.log_grid import Times
from solver.importers.tables import TABLES, read_columns
from tests.conftest import FULL

AIC = TABLES / "aiconfigurator" / "derived_csv"
needs_tables = pytest.mark.skipif(not AIC.is_dir(), reason=f"needs the published tables at {TABLES}")
A100 = DEVICES["a100-80g"]
# Kinds whose tables reach any shape.
GPUS = sorted(kind for kind, device in DEVICES.items() if not device.single)


def spec_of(name: str) -> ModelSpec:
    return read_model_spec(CONFIGS / "models" / f"{name}.json")


def cells(name: str, **where: object) -> list[float]:
    """Latencies in ms of the rows with these values, read without the importers."""
    with gzip.open(AIC / f"a100_sxm__vllm__0.14.0__{name}_perf.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if all(row[k] == str(v) for k, v in where.items())]
    return [float(row["latency"]) for row in rows]


def at(times: Times) -> tuple[float, int]:
    return float(times.seconds.ravel()[0]), int(times.marks.ravel()[0])


@needs_tables
def test_what_the_tables_hold_comes_back_in_seconds() -> None:
    one = np.array([64.0])
    seconds, mark = at(gemm.gemm_times(TABLES, A100, one, 4096, 12288))
    assert seconds == pytest.approx(1e-3 * cells("gemm", m=64, n=4096, k=12288)[0])
    assert mark == Mark.MEASURED
    heads = attention.Heads(32, 8)
    found = {"num_heads": 32, "num_key_value_heads": 8}
    seconds, mark = at(attention.attention_times(TABLES, A100, "generation", one, np.array([1024.0]), heads))
    assert seconds == pytest.approx(1e-3 * cells("generation_attention", batch_size=64, step=1023, **found)[0])
    assert mark == Mark.MEASURED
    seconds, mark = at(attention.attention_times(TABLES, A100, "context", np.array([4.0]), np.array([1024.0]), heads))
    measured = np.median(cells("context_attention", batch_size=4, isl=1024, **found))
    assert seconds == pytest.approx(1e-3 * measured)
    assert mark == Mark.MEASURED


@needs_tables
def test_messages_are_counted_in_elements_of_two_bytes() -> None:
    seconds, mark = at(collectives.all_reduce_times(TABLES, A100, 4, np.array([2.0 * 65536])))
    assert mark == Mark.MEASURED
    measured = cells("custom_allreduce", num_gpus=4, message_size=65536, backend="vllm_graph")[0]
    assert seconds == pytest.approx(1e-3 * measured)
    big, _ = at(collectives.all_reduce_times(TABLES, A100, 2, np.array([2.0**30])))
    # A ring of two moves each byte once each way: the tables' elements, read as bytes, would show half this rate.
    assert 150e9 < 2.0**30 / big < 300e9


@needs_tables
def test_vidur_rows_are_counted_in_tokens_of_4096_elements() -> None:
    seconds, _ = at(collectives.all_reduce_times(TABLES, DEVICES["a40-48g"], 2, np.array([1024.0 * 4096 * 2])))
    path = TABLES / "vidur" / "history_c211fca" / "a40" / "all_reduce.csv.gz"
    names = ("num_tokens", "num_workers", "n_embd", "time_stats.all_reduce.median")
    rows = read_columns(path, names)
    chosen = (rows["num_tokens"] == 1024) & (rows["num_workers"] == 2) & (rows["n_embd"] == 4096)
    assert seconds == pytest.approx(1e-3 * np.median(rows[names[-1]][chosen]), rel=0.1)


@needs_tables
def test_one_decode_layer_by_hand() -> None:
    """Llama 3 8B, tensor 2, 64 rows of 1,024 tokens: every product and sum from the CSV, the rest by a calculator."""
    profile = compose(spec_of("llama-3-8b"), "a100-80g", "bfloat16")
    layer = profile.layer(2, LayerKind())
    products_ms = (
        cells("gemm", m=64, n=3072, k=4096)[0]  # (16 + 2 * 4) heads of 128
        + cells("gemm", m=64, n=4096, k=2048)[0]
    )
    # 28,672 / 2 = 14,336 lies between the tables' 12,288 and 16,384, and 7,168 is one of them.
    products_ms += cells("gemm", m=64, n=4096, k=7168)[0]
    low, high = (cells("gemm", m=64, n=n, k=4096)[0] for n in (12288, 16384))
    share = np.log(14336 / 12288) / np.log(16384 / 12288)

    def roof(n: int) -> float:
        return 2 * 64 * n * 4096 / 312e12 + 2 * (64 * 4096 + 4096 * n + 64 * n) / 2.039e12 + 3e-6

    up_s = roof(14336) * (1e-3 * low / roof(12288)) ** (1 - share) * (1e-3 * high / roof(16384)) ** share
    attend_ms = cells("generation_attention", batch_size=64, step=1023, num_heads=16, num_key_value_heads=4)[0]
    # 64 x 4,096 elements: 262,144, a size of the table.
    sums_ms = 2 * cells("custom_allreduce", num_gpus=2, message_size=262144, backend="vllm_graph")[0]
    moved = 64 * 2 * (4 * 4096 + 4 * 4096 + 2 * 512 + 3 * 7168 + 2 * (2048 + 512))
    rest_s = 5 * 3e-6 + moved / (0.8 * 2.039e12)
    by_hand = up_s + rest_s + 1e-3 * (products_ms + attend_ms + sums_ms)
    assert float(layer.decode.at(64, 1024)) == pytest.approx(by_hand, rel=1e-4)


@needs_tables
def test_heads_that_no_table_holds_are_read_at_more_rows_and_marked() -> None:
    rows, context = np.array([8.0]), np.array([1024.0])
    direct, mark = at(attention.attention_times(TABLES, A100, "generation", rows * 12, context, attention.Heads(8, 8)))
    scaled, scaled_mark = at(
        attention.attention_times(TABLES, A100, "generation", rows, context, attention.Heads(96, 96))
    )
    assert scaled == pytest.approx(direct)
    assert mark < Mark.EXTRAPOLATED <= scaled_mark
    odd, odd_mark = at(attention.attention_times(TABLES, A100, "generation", rows, context, attention.Heads(28, 4)))
    assert odd_mark == Mark.ESTIMATED
    narrow, narrow_mark = at(
        attention.attention_times(TABLES, A100, "generation", rows * 16, context, attention.Heads(32, 8, 64))
    )
    wide, _ = at(attention.attention_times(TABLES, A100, "generation", rows * 16, context, attention.Heads(32, 8)))
    assert 0.4 * wide < narrow < wide
    assert narrow_mark == Mark.ESTIMATED
    assert odd > 0


@needs_tables
@pytest.mark.parametrize("model", ["opt-13b", "llama-3-70b", "gpt3-341b"])
@pytest.mark.parametrize("kind", GPUS if FULL else ["a100-80g", "a40-48g", "h100-80g"])
def test_every_preset_is_reachable_on_every_kind(model: str, kind: str) -> None:
    spec = spec_of(model)
    profile = compose(spec, kind, "float16", model)
    check_profile(profile, model)
    assert profile.tensor_degrees == (1, 2, 4, 8)
    layer = profile.layer(1, LayerKind())
    # No layer reads its weights faster than the memory gives them, nor multiplies faster than the peak.
    device = table_device(kind)
    key_value = spec.kv_heads * spec.head_dim
    weights = spec.hidden_size * (2 * spec.heads * spec.head_dim + 2 * key_value)
    weights += (3 if spec.gated_mlp else 2) * spec.hidden_size * spec.mlp_size
    assert layer.decode.seconds.min() > 2 * weights / device.bytes_per_s
    tokens = layer.encode.first[:, None] * layer.encode.second
    assert (layer.encode.seconds > 2 * weights * tokens / device.flops_per_s).all()
    if kind == "a40-48g":
        assert int(mark_at(layer.decode, 64, 1024)) == Mark.ESTIMATED
        assert "estimated" in profile.source


@needs_tables
def test_a_window_cuts_context_and_scores() -> None:
    spec = spec_of("llama-3-8b")
    runs = (LayerRun(LayerKind(), 16), LayerRun(LayerKind(window_tokens=1024), 16))
    profile = compose(dataclasses.replace(spec, layers=runs), "a100-80g", "bfloat16")
    whole, cut = profile.layer(1, LayerKind()), profile.layer(1, LayerKind(window_tokens=1024))
    short = whole.decode.second <= 1024
    assert (cut.decode.seconds[:, short] == whole.decode.seconds[:, short]).all()
    assert (cut.decode.seconds[:, ~short] == cut.decode.seconds[:, [np.flatnonzero(short)[-1]]]).all()
    assert (
        cut.encode.seconds[:, whole.encode.second > 2048] < whole.encode.seconds[:, whole.encode.second > 2048]
    ).all()


@pytest.mark.parametrize(
    ("kind", "dtype", "line"),
    [("b200-180g", "bfloat16", "device_kind: .*b200-180g"), ("a100-80g", "float32", "dtype: .*float32")],
)
def test_unknown_hardware_and_dtype_are_refused(kind: str, dtype: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        compose(spec_of("opt-13b"), kind, dtype)


def test_tables_that_are_missing_or_cut_short_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tables=DIR"):
        compose(spec_of("opt-13b"), "a100-80g", "bfloat16", tables=tmp_path)
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress(b"m,latency\n" + b"".join(b"%d,%d.5\n" % (i, i * 7919) for i in range(999)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: is cut short"):
        read_columns(path, ("m", "latency"))
    path.write_bytes(gzip.compress(b"m,latency\n1,fast\n"))
    with pytest.raises(ValueError, match=r"t\.csv\.gz: .*fast"):
        read_columns(path, ("m", "latency"))
    with pytest.raises(ValueError, match="no column n"):
        read_columns(path, ("n",))


def test_log_grid_follows_power_laws_fills_gaps_and_marks() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid([1.0, 4.0, 16.0], [2.0, 8.0, 32.0], indexing="ij"))
    law = np.log(3 * x**0.5 / y)
    kept = (x < 16) | (y < 32)
    grid = log_grid.grid_of((x[kept], y[kept]), law[kept])
    ratio, mark = grid.at(np.array([2.0, 4.0, 16.0, 64.0]), np.array([5.0, 8.0, 32.0, 2.0]))
    assert ratio[:2] == pytest.approx([3 * 2**0.5 / 5, 3 * 4**0.5 / 8])
    assert ratio[2] == pytest.approx(3 * 4 / 8)
    assert ratio[3] == pytest.approx(3 * 4 / 2)
    assert mark.tolist() == [Mark.INTERPOLATED, Mark.MEASURED, Mark.EXTRAPOLATED, Mark.EXTRAPOLATED]


def test_a_sum_is_marked_by_the_parts_that_matter() -> None:
    def part(seconds: float, mark: Mark) -> Times:
        return Times(np.array([seconds]), np.array([mark], np.uint8))

    measured, little = part(1.0, Mark.INTERPOLATED), part(0.05, Mark.ESTIMATED)
    assert at(parts.add([measured, little])) == (1.05, Mark.INTERPOLATED)
    assert at(parts.add([measured, little, little, little]))[1] == Mark.ESTIMATED
    assert at(parts.add([measured, part(0.1, Mark.EXTRAPOLATED), little]))[1] == Mark.EXTRAPOLATED


@pytest.mark.parametrize("kind", GPUS)
def test_shipped_profiles_serve_the_presets(kind: str) -> None:
    for model in ("opt-13b", "llama-2-7b", "gpt3-175b"):
        profile = find_profile(spec_of(model), kind, "bfloat16")
        assert (profile.model, profile.device_kind, profile.dtype) == (model, kind, "bfloat16")
        assert find_profile(spec_of(model), kind, "float16").dtype == "float16"


@needs_tables
def test_shipped_profiles_are_what_the_tables_give() -> None:
    def made(model: str, kind: str) -> Profile:
        return compose(spec_of(model), kind, "bfloat16", model)

    for model, kind in (("opt-13b", "a40-48g"), ("llama-3-70b", "h100-80g")):
        assert digest(find_profile(spec_of(model), kind, "bfloat16")) == digest(made(model, kind))


@needs_tables
def test_one_layer_on_an_rtx_4090_by_hand_in_microseconds() -> None:
    folder = TABLES / "llmservingsim" / "profiler" / "perf" / "RTX4090" / "meta-llama" / "Llama-3.1-8B" / "bf16" / "tp1"

    def us(file: str, **where: object) -> float:
        with gzip.open(folder / f"{file}.csv.gz", "rt") as packed:
            rows = [row for row in csv.DictReader(packed) if all(row[k] == str(v) for k, v in where.items())]
        return float(np.median([float(row["time_us"]) for row in rows]))

    profile = compose(spec_of("llama-3-8b"), "rtx4090-24g", "bfloat16")
    assert profile.tensor_degrees == (1,)
    names = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "layernorm", "gate_up_proj", "act_fn", "down_proj")
    decode = sum(us("dense", layer=name, tokens=32) for name in names)
    decode += us("attention", prefill_chunk=0, n_decode=32, kv_decode=1024)
    assert float(profile.layer(1, LayerKind()).decode.at(32, 1024)) == pytest.approx(1e-6 * decode, rel=1e-4)
    encode = sum(us("dense", layer=name, tokens=512) for name in names)
    encode += us("attention", prefill_chunk=512, kv_prefill=0, n_decode=0)
    assert float(profile.layer(1, LayerKind()).encode.at(1, 512)) == pytest.approx(1e-6 * encode, rel=1e-4)


@needs_tables
def test_a_tpu_layer_lies_between_bandwidth_and_a_few_times_that() -> None:
    profile = compose(spec_of("llama-3-8b"), "tpu-v6e", "bfloat16")
    check_profile(profile, "tpu")
    one = float(profile.layer(1, LayerKind()).decode.at(1, 64))
    weights_s = 2 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) / DEVICES["tpu-v6e"].bytes_per_s
    assert weights_s < one < 3 * weights_s


@pytest.mark.parametrize("kind", ["rtx4090-24g", "tpu-v6e"])
def test_tables_of_one_model_serve_no_other(kind: str) -> None:
    with pytest.raises(ValueError, match=r"Llama 3\.1 8B alone"):
        compose(spec_of("llama-2-7b"), kind, "bfloat16")
