"""The strict safetensors reader: what it accepts equals the reference's reading, what it refuses is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from exegpt_jax.weights import checkpoint
from exegpt_jax.weights.safetensors import FLOATS, SafetensorsFile, parse_header, write_safetensors

NAMES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    shapes = {name: (NAMES[array.dtype], array.shape) for name, array in arrays.items()}
    write_safetensors(path, shapes, arrays.__getitem__)


def read(file: SafetensorsFile, name: str) -> np.ndarray:
    return file.read(name, tuple(slice(0, size) for size in file.tensors[name].shape))


def random_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(7, 5)).astype(np.float32),
        "b": rng.normal(size=(11,)).astype(np.float16),
        "c": rng.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
        "empty": np.empty((0, 4), np.float32),
    }


def test_reads_what_the_reference_wrote(tmp_path: Path) -> None:
    arrays = {name: array for name, array in random_arrays().items() if name != "c"}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read(file, name), array)


def test_the_reference_reads_what_we_wrote(tmp_path: Path) -> None:
    arrays = {name: array for name, array in random_arrays().items() if name != "c"}
    write(tmp_path / "x.safetensors", arrays)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_reads_bfloat16(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", random_arrays())
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert read(file, "c").dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(read(file, "c"), random_arrays()["c"])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_blocks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any block of a matrix, with rows longer and shorter than the piece and scratch sizes."""
    path = tmp_path_factory.mktemp("blocks") / "x.safetensors"
    height, width = data.draw(st.sampled_from([(3, 5), (40, 3000), (1, 9), (600, 2)]))
    matrix = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    write(path, {"m": matrix})
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    index = slice(top, bottom), slice(left, right)
    with SafetensorsFile(path) as file:
        np.testing.assert_array_equal(file.read("m", index), matrix[index])


# Bad headers -----------------------------------------------------------------------------------------------------


def header(**changes: object) -> bytes:
    field: dict = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return json.dumps({"w": {**field, **changes}}).encode()


def one_clear_line(error: ValueError, word: str = "") -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    assert word in str(error)


def refused(text: bytes, data_bytes: int = 16) -> str:
    with pytest.raises(ValueError) as failure:
        parse_header(text, 8 + len(text) + data_bytes)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_good_header_passes() -> None:
    info = parse_header(header() + b"   ", 8 + len(header()) + 3 + 16)
    assert info["w"].shape == (2, 2)
    assert info["w"].end - info["w"].begin == 16


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b'{"w": 1}', "exactly"),
        (b"\xff{}", "UTF-8"),
        (b"[" * 100_000, "deeply"),
        (b'{"w": NaN}', "NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__"),
        (header(dtype="F7"), "dtype"),
        (header(dtype=[]), "dtype"),
        (header(shape=[2, -2]), "sizes"),
        (header(shape=[2, 2.0]), "sizes"),
        (header(shape=[True, 4]), "sizes"),
        (header(shape=4), "sizes"),
        (header(shape=[1] * 20), "sizes"),
        (header(data_offsets=[0]), "sizes"),
        (header(data_offsets=[16, 0]), "span"),
        (header(data_offsets=[0, 12]), "span"),
        (header(shape=[1 << 62, 1 << 62]), "span"),
        (header(data_offsets=[8, 24]), "hole"),
        (header(extra=1), "exactly"),
        (header()[:-1] + b',"w":' + header()[6:], "twice"),
        (b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}',
         "overlaps"),
    ],
)  # fmt: skip
def test_bad_headers(text: bytes, word: str) -> None:
    assert word in refused(text)


def test_length_must_agree() -> None:
    assert "truncated" in refused(header(), 15)
    assert "longer" in refused(header(), 17)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
sizes = st.integers(-2, 40) | st.integers() | st.booleans() | st.floats()
tensor_fields = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "BOOL", "I64", "X"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, max_size=3),
    }
)


@given(text=st.binary(max_size=64) | st.dictionaries(st.text(max_size=4), tensor_fields | json_values, max_size=4).map(
    lambda fields: json.dumps(fields).encode()), data_bytes=st.integers(0, 64))  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_fuzzed_headers_parse_or_say_why(text: bytes, data_bytes: int) -> None:
    try:
        infos = parse_header(text, 8 + len(text) + data_bytes)
    except ValueError as error:
        one_clear_line(error)
        return
    covered = sorted((info.begin, info.end) for info in infos.values())
    assert all(0 <= begin <= end <= 8 + len(text) + data_bytes for begin, end in covered)
    assert sum(end - begin for begin, end in covered) == data_bytes


@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=6))
@settings(max_examples=200, deadline=None)
def test_damaged_files_read_or_say_why(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write(path, random_arrays())
    data = bytearray(path.read_bytes())
    for position, mask in flips:
        data[position % len(data)] ^= mask
    path.write_bytes(bytes(data[: len(data) - cut]) if cut < len(data) else b"")
    try:
        with SafetensorsFile(path) as file:
            for name, info in file.tensors.items():
                if info.dtype in FLOATS and len(info.shape) in (1, 2):
                    read(file, name)
    except ValueError as error:
        one_clear_line(error, str(path))


# Index -----------------------------------------------------------------------------------------------------------


def write_sharded(directory: Path) -> dict[str, np.ndarray]:
    arrays = random_arrays()
    write(directory / "model-1.safetensors", {"a": arrays["a"]})
    write(directory / "model-2.safetensors", {"b": arrays["b"], "c": arrays["c"]})
    write_index(directory, {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"})
    return arrays


def write_index(directory: Path, weight_map: object) -> None:
    (directory / checkpoint.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_sharded_checkpoint(tmp_path: Path) -> None:
    arrays = write_sharded(tmp_path)
    with checkpoint.open_checkpoint(tmp_path) as files:
        assert set(files) == {"a", "b", "c"}
        for name, file in files.items():
            np.testing.assert_array_equal(read(file, name), arrays[name])


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "../model-1.safetensors"}, "beside"),
        ({"a": "/etc/passwd"}, "beside"),
        ({"a": "model.bin"}, "beside"),
        ({"a": 1}, "beside"),
        ({"a": "x\0.safetensors"}, "beside"),
        ([], "weight_map"),
        ({"a": "model-9.safetensors"}, "cannot be read"),
        ({"a": "model-2.safetensors"}, "not in their files"),
        ({"a": "model-1.safetensors", "b": "model-2.safetensors"}, "does not name"),
    ],
)
def test_bad_indexes(tmp_path: Path, weight_map: object, word: str) -> None:
    write_sharded(tmp_path)
    write_index(tmp_path, weight_map)
    with pytest.raises(ValueError, match=word) as failure, checkpoint.open_checkpoint(tmp_path):
        pass
    assert "\n" not in str(failure.value)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"), checkpoint.open_checkpoint(tmp_path):
        pass
