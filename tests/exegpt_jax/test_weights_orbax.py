"""Converted checkpoints: exact at every pair of degrees, and refused in one line once a byte differs."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.sharding.stage import Stage
from exegpt_jax.weights import manifest, orbax
from exegpt_jax.weights.digest import checkpoint_digest
from exegpt_jax.weights.loading import load_stage
from tests.exegpt_jax.tiny_models import CONFIGS, assert_holds, expected_params, spec_of, stage_spec, write_model


def load(name: str, directory: Path, tensor: int = 1, dtype: str = "float32") -> Stage:
    return load_stage(directory, spec_of(name), stage_spec(spec_of(name), tensor), dtype)


def convert(name: str, directory: Path, output: Path, tensor: int = 1, dtype: str = "float32") -> None:
    orbax.save(load(name, directory, tensor, dtype), directory, checkpoint_digest(directory), output)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_and_degree(tmp_path: Path, name: str) -> None:
    """Stored at one degree, restored at another: padding and repeated heads follow."""
    tensors, spec = write_model(name, tmp_path / "model"), spec_of(name)
    for stored in (1, 8):
        output = tmp_path / f"orbax{stored}"
        convert(name, tmp_path / "model", output, stored)
        for tensor in (1, 2, 8):
            assert_holds(load(name, output, tensor), expected_params(spec, tensors, tensor))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    tensors, spec = write_model("qwen2", tmp_path / "model", dtype), spec_of("qwen2")
    convert("qwen2", tmp_path / "model", tmp_path / "orbax", 4, dtype)
    assert_holds(load("qwen2", tmp_path / "orbax", 2, dtype), expected_params(spec, tensors, 2))
    wide = {key: tensor.astype(jnp.float32) for key, tensor in tensors.items()}
    assert_holds(load("qwen2", tmp_path / "orbax", 2, "float32"), expected_params(spec, wide, 2))


def test_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, spec = write_model("llama", tmp_path / "model"), spec_of("llama")
    convert("llama", tmp_path / "model", tmp_path / "orbax", 2)
    monkeypatch.setattr(orbax, "GROUP_BYTES", 10_000)
    seen: list[tuple[str, int, int]] = []
    loaded = load_stage(tmp_path / "orbax", spec, stage_spec(spec, 4), "float32", progress=lambda *s: seen.append(s))
    assert_holds(loaded, expected_params(spec, tensors, 4))
    assert seen[-1][1] == seen[-1][2]


def test_part_of_the_layers(tmp_path: Path) -> None:
    tensors, spec = write_model("llama", tmp_path / "model"), spec_of("llama")
    convert("llama", tmp_path / "model", tmp_path / "orbax")
    part = load_stage(tmp_path / "orbax", spec, stage_spec(spec, 2, (1, 3)), "float32")
    assert_holds(part, expected_params(spec, tensors, 2, (1, 3)))


def test_what_the_directory_holds(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("terms")
    convert("llama", tmp_path / "model", tmp_path / "orbax", 2)
    found = manifest.verify(tmp_path / "orbax")
    assert (found.tensor, found.dtype, found.layers) == (2, "float32", (0, 3))
    assert found.source_digest == checkpoint_digest(tmp_path / "model")
    names = {path.name for path in (tmp_path / "orbax").iterdir()}
    assert names == {
        "LICENSE", "config.json", "generation_config.json", "tokenizer.json", manifest.MANIFEST, manifest.STATE,
    }  # fmt: skip
    assert not list(tmp_path.glob(".*"))
    for path in (tmp_path / "orbax").rglob("*"):
        # A pickle of protocol 2 or later starts so; everything here is JSON, text or OCDBT.
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")


def test_another_model_is_refused(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "model")
    convert("llama", tmp_path / "model", tmp_path / "orbax")
    with pytest.raises(ValueError, match=r"does not hold blocks.0.attention.q_norm|config.json makes it") as failure:
        load("qwen3", tmp_path / "orbax")
    assert "\n" not in str(failure.value)
    with pytest.raises(ValueError, match="does not hold"):
        load("llama-biases", tmp_path / "orbax")


def test_output_must_be_new(tmp_path: Path) -> None:
    write_model("llama", tmp_path / "model")
    with pytest.raises(ValueError, match="exists"):
        convert("llama", tmp_path / "model", tmp_path / "model")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with manifest.complete_directory(tmp_path / "out") as directory:
            (directory / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert not list(tmp_path.iterdir())


# Damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    write_model("llama-tied", directory / "model")
    convert("llama-tied", directory / "model", directory / "orbax", 2)
    return directory / "orbax"


def refused(directory: Path) -> str:
    with pytest.raises(ValueError) as failure:
        load("llama-tied", directory)
    assert "\n" not in str(failure.value)
    assert str(directory) in str(failure.value)
    return str(failure.value)


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@given(data=st.data())
def test_any_damage_is_refused(converted: Path, data: st.DataObject) -> None:
    """One file changed in one byte, cut, lengthened or removed."""
    path = data.draw(st.sampled_from(files_of(converted)), label="file")
    good = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "gone"]))
    position = data.draw(st.integers(0, max(0, len(good) - 1)))
    try:
        if kind == "flip" and good:
            path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        elif kind == "cut" and good:
            path.write_bytes(good[:position])
        elif kind == "longer" or kind != "gone":
            path.write_bytes(good + b"x")
        else:
            path.unlink()
        refused(converted)
    finally:
        path.write_bytes(good)
    manifest.verify(converted)


def test_damage_is_named(converted: Path) -> None:
    array = max(files_of(converted / manifest.STATE), key=lambda path: path.stat().st_size)
    good = array.read_bytes()
    try:
        array.write_bytes(good[:-1])
        assert "truncated" in refused(converted)
        array.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert f"{array.relative_to(converted)} is altered" in refused(converted)
        array.unlink()
        assert "is missing" in refused(converted)
    finally:
        array.write_bytes(good)


def test_unlisted_arrays_are_refused(converted: Path) -> None:
    extra = converted / manifest.STATE / "d" / "extra"
    extra.write_bytes(b"x")
    try:
        assert "not in the manifest" in refused(converted)
    finally:
        extra.unlink()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"digest": 1, "format": "exegpt-orbax-1"}', '{"format": 1, "digest": 2}']
)
def test_bad_manifests(converted: Path, text: str) -> None:
    path = converted / manifest.MANIFEST
    good = path.read_bytes()
    try:
        path.write_text(text)
        refused(converted)
    finally:
        path.write_bytes(good)


def test_a_sealed_lie_is_still_checked(converted: Path) -> None:
    """A manifest whose own digest is right, but whose shapes are not the model's."""
    path = converted / manifest.MANIFEST
    good = path.read_bytes()
    found = manifest.read_manifest(converted)
    shapes = {name: ((9, *shape[1:]) if name == "embed.tokens" else shape) for name, shape in found.parameters.items()}
    try:
        manifest.write_manifest(converted, manifest.Manifest(**{**vars(found), "parameters": shapes}))
        assert "embed.tokens is [9, 24], but config.json makes it [53, 24]" in refused(converted)
    finally:
        path.write_bytes(good)
    assert json.loads(good)["format"] == manifest.FORMAT
