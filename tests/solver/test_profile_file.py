"""The profile file: what is written reads back equal, and every fault is one line that names file and field."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.facts import profile_file
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.facts.presets import CONFIGS
from solver.facts.profile import EndTimes, LayerTimes, Mark, Profile, Table
from solver.facts.profile_marks import mark_at


def spec_of(name: str) -> ModelSpec:
    return read_model_spec(CONFIGS / "models" / f"{name}.json")


def table(rng: np.random.Generator, first: list[float], second: list[float]) -> Table:
    shape = (len(first), len(second))
    seconds = rng.uniform(1e-6, 1e-2, shape)
    return Table(np.array(first), np.array(second), seconds, rng.integers(0, 4, shape).astype(np.uint8))


def some_profile(spec: ModelSpec, **changes: Any) -> Profile:
    rng = np.random.default_rng(3)
    kinds = sorted({run.kind for run in spec.layers}, key=str)
    profile = Profile(
        model="some-model",
        shape=profile_file.shape_digest(spec),
        dtype="bfloat16",
        cache_dtype="bfloat16",
        device_kind="a100-80g",
        source="made up",
        layers=tuple(
            LayerTimes(t, kind, table(rng, [1.0, 2.0, 8.0], [16.0, 64.5]), table(rng, [1.0, 4.0], [16.0, 64.0, 256.0]))
            for t in (1, 2)
            for kind in kinds
        ),
        ends=tuple(EndTimes(t, table(rng, [1.0, 64.0], [0.0]), table(rng, [1.0, 8.0], [0.0])) for t in (1, 2)),
        dispatch_s=3e-5,
        phase_s=0.0,
        padded=False,
        spread=0.03,
    )
    return dataclasses.replace(profile, **changes)


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, Profile | LayerTimes | EndTimes | Table):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_what_is_written_reads_back_equal(tmp_path: Path, name: str) -> None:
    profile = some_profile(spec_of("opt-13b"))
    profile_file.write_profile(profile, tmp_path / name)
    read = profile_file.read_profile(tmp_path / name)
    assert equal(read, profile)
    assert profile_file.digest(read) == profile_file.digest(profile)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_digest_sees_every_field() -> None:
    spec = spec_of("opt-13b")
    profile = some_profile(spec)
    seconds = profile.layers[1].decode.seconds.copy()
    seconds[1, 2] = np.nextafter(seconds[1, 2], 1)
    decode = dataclasses.replace(profile.layers[1].decode, seconds=seconds)
    layers = (profile.layers[0], dataclasses.replace(profile.layers[1], decode=decode))
    others = [dataclasses.replace(profile, layers=layers)]
    changes: dict[str, Any] = {"model": "x", "dtype": "float16", "source": "", "padded": True, "spread": 0.04}
    others += [dataclasses.replace(profile, **{name: value}) for name, value in changes.items()]
    assert len({profile_file.digest(p) for p in [profile, *others]}) == len(others) + 1


def test_shape_digest_sees_what_times_depend_on_and_nothing_else() -> None:
    spec = spec_of("llama-3-8b")
    window = (LayerRun(LayerKind(window_tokens=4096), spec.num_layers),)
    timed: dict[str, Any] = {
        "hidden_size": 4224,
        "mlp_size": 1,
        "heads": 64,
        "kv_heads": 4,
        "vocab_size": 7,
        "qk_norm": True,
    }
    others = [dataclasses.replace(spec, **{name: value}) for name, value in timed.items()]
    others += [dataclasses.replace(spec, layers=window), dataclasses.replace(spec, rope=None)]
    assert len({profile_file.shape_digest(s) for s in [spec, *others]}) == len(others) + 1
    untimed: dict[str, Any] = {
        "family": "mistral",
        "max_positions": 1,
        "tied_embeddings": not spec.tied_embeddings,
        "layers": (LayerRun(LayerKind(), 3), LayerRun(LayerKind(), 5)),
        "dtype": "float16",
    }
    same = [dataclasses.replace(spec, **{name: value}) for name, value in untimed.items()]
    assert {profile_file.shape_digest(s) for s in same} == {profile_file.shape_digest(spec)}


def damaged(tmp_path: Path, change: Any) -> str:
    """The line of the refusal of a file changed so."""
    path = tmp_path / "p.json"
    profile_file.write_profile(some_profile(spec_of("opt-13b")), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError) as caught:
        profile_file.read_profile(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def put(path: str, value: object) -> Any:
    def change(data: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            data = data[int(part) if part.isdigit() else part]
        data[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("layers.0.encode.seconds.1.1", -1e-3, "layers[0].encode.seconds[1][1]: -0.001"),
        ("layers.1.decode.seconds.0.0", 0.0, "layers[1].decode.seconds[0][0]: 0"),
        ("ends.1.head.seconds.0.0", float("nan"), "NaN"),
        ("ends.1.head.seconds.0.0", "fast", "ends[1].head.seconds[0][0]"),
        ("layers.0.encode.seconds.1", [1e-3], "layers[0].encode.seconds"),
        ("layers.0.encode.first", [1, 2], "layers[0].encode.seconds"),
        ("layers.0.encode.first", [1, 8, 2], "layers[0].encode.first"),
        ("layers.0.decode.second", [-1, 4, 5], "layers[0].decode.second"),
        ("layers.0.encode.marks", ["00", "00"], "layers[0].encode.marks"),
        ("layers.0.encode.marks.0", "09", "layers[0].encode.marks: '9'"),
        ("ends.0.embed.first", [], "ends[0].embed"),
        ("layers.0.tensor", 2, "layers: a tensor degree"),
        ("ends.0.tensor", 4, "ends: their tensor degrees"),
        ("spread", -0.1, "spread: -0.1"),
        ("dispatch_s", True, "dispatch_s"),
        ("schema_version", 2, "schema_version: 2"),
        ("colour", "red", "colour: unknown field"),
    ],
)
def test_every_fault_is_one_line_with_file_and_field(tmp_path: Path, path: str, value: object, field: str) -> None:
    assert field in damaged(tmp_path, put(path, value))


def test_missing_field(tmp_path: Path) -> None:
    assert "spread: missing" in damaged(tmp_path, lambda data: data.pop("spread"))


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    profile_file.write_profile(some_profile(spec_of("opt-13b")), path)
    whole = path.read_bytes()
    for kept in (0, 1, 9, len(whole) // 2, len(whole) - 9, len(whole) - 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=name) as caught:
            profile_file.read_profile(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(ValueError, match=name):
        profile_file.read_profile(path)


def test_a_profile_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    profile = some_profile(spec_of("opt-13b"), dispatch_s=float("nan"))
    with pytest.raises(ValueError, match="dispatch_s"):
        profile_file.write_profile(profile, tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_a_profile_serves_its_own_model_device_and_dtype_only() -> None:
    spec = spec_of("opt-13b")
    profile = some_profile(spec)
    profile_file.check_fits(profile, spec, "a100-80g", "bfloat16")
    for other, kind, dtype, word in (
        (spec_of("gpt3-39b"), "a100-80g", "bfloat16", "another model"),
        (spec, "h100-80g", "bfloat16", "device kind a100-80g, not h100-80g"),
        (spec, "a100-80g", "float32", "dtype bfloat16, not float32"),
    ):
        with pytest.raises(ValueError, match=word):
            profile_file.check_fits(profile, other, kind, dtype)


def test_shipped_profiles_are_found_by_shape_kind_and_dtype(tmp_path: Path) -> None:
    spec = spec_of("opt-13b")
    profile = some_profile(spec)
    name = profile_file.shipped_name("opt-13b", profile.shape, "a100-80g", "bfloat16")
    profile_file.write_profile(profile, tmp_path / name)
    assert equal(profile_file.find_profile(spec, "a100-80g", "bfloat16", tmp_path), profile)
    half = profile_file.find_profile(spec, "a100-80g", "float16", tmp_path)
    assert half.dtype == "float16"
    assert "as fast as bfloat16" in half.source
    for other, kind, dtype in (
        (spec_of("gpt3-39b"), "a100-80g", "bfloat16"),
        (spec, "h100-80g", "bfloat16"),
        (spec, "a100-80g", "float32"),
    ):
        with pytest.raises(ValueError, match="exegpt profile"):
            profile_file.find_profile(other, kind, dtype, tmp_path)


def test_gzip_is_reproducible(tmp_path: Path) -> None:
    profile = some_profile(spec_of("opt-13b"))
    for name in ("a.json.gz", "b.json.gz"):
        profile_file.write_profile(profile, tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()).decode() == profile_file.to_text(profile)


def test_marks_are_those_of_the_points_used() -> None:
    marks = np.array([[0, 0, 3], [0, 1, 0]], np.uint8)
    grid = Table(np.array([1.0, 2.0]), np.array([4.0, 8.0, 16.0]), np.ones((2, 3)), marks)
    cases = [
        (1, 4, Mark.MEASURED),
        (2, 8, Mark.INTERPOLATED),
        (1, 6, Mark.INTERPOLATED),
        (1.5, 4, Mark.INTERPOLATED),
        (1, 16, Mark.ESTIMATED),
        (1, 9, Mark.ESTIMATED),
        (2, 16, Mark.MEASURED),
        (2, 17, Mark.EXTRAPOLATED),
        (1, 17, Mark.ESTIMATED),
        (3, 4, Mark.EXTRAPOLATED),
        (0.5, 4, Mark.EXTRAPOLATED),
    ]
    first, second, expected = map(np.array, zip(*cases, strict=True))
    assert mark_at(grid, first, second).tolist() == expected.tolist()
    assert int(mark_at(grid, 1.0, 4.0)) == Mark.MEASURED
    single = Table(np.array([1.0, 2.0]), np.array([0.0]), np.ones((2, 1)), np.zeros((2, 1), np.uint8))
    assert int(mark_at(single, 1.0, 0.0)) == Mark.MEASURED
