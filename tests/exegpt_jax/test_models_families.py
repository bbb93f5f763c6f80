"""Weight tables: every tensor of a checkpoint has its place, and any slice of a parameter is read from slices."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from exegpt_jax.models.families import table
from exegpt_jax.models.families.table import Weight, logical_shape, read_slice, rebuild, source_shape
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Leaf, blueprint
from solver.facts.model_config import parse_config, read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())


def leaves(spec: ModelSpec, tensor: int) -> tuple[Leaf, ...]:
    stage = StageSpec("both", (0, spec.num_layers), tuple(range(tensor)), tensor)
    return blueprint(spec, stage, "float32", make_mesh(jax.devices()[:tensor])).leaves


@pytest.mark.parametrize("directory", GOLDEN, ids=[path.name for path in GOLDEN])
def test_every_tensor_has_its_place(directory: Path) -> None:
    """Names and shapes of what transformers wrote, with and without the prefix; nothing missing, nothing left over."""
    spec = read_model_spec(directory)
    weights = table(spec)
    stored = {weights.full_name(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    needed = {}
    for leaf in leaves(spec, 1):
        weight = weights.weight(leaf.path)
        needed[weight.name] = source_shape(weight, logical_shape(spec, leaf.axes, leaf.shape))
    assert {name: stored[name].shape for name in needed} == needed
    assert all(weights.is_ignored(name) for name in stored.keys() - needed.keys())
    assert not any(weights.is_ignored(name) for name in needed)


class Recorder:
    """A tensor that remembers how much of it was read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.read = 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        assert all(part.step in (None, 1) for part in index)
        self.read += self.array[index].size
        return self.array[index]


ROTARY = {"model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
SPECS = [
    parse_config(ROTARY | {"num_attention_heads": 8, "num_key_value_heads": kv, "head_dim": 4, "vocab_size": 19})
    for kv in (1, 2, 8)
] + [parse_config({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 8, "vocab_size": 19, "n_positions": 8})]


@given(data=st.data(), spec=st.sampled_from(SPECS), tensor=st.sampled_from([1, 2, 4, 8]))
def test_slices(data: st.DataObject, spec: ModelSpec, tensor: int) -> None:
    """Any slice equals the same slice of the whole, reads no more than it must, and the whole goes back bit for bit."""
    leaf = data.draw(st.sampled_from(leaves(spec, tensor)))
    weight = table(spec).weight(leaf.path)
    logical = logical_shape(spec, leaf.axes, leaf.shape)
    rng = np.random.default_rng(0)
    tensor_array = rng.standard_normal(source_shape(weight, logical), np.float32)
    whole = read_slice(weight, spec, leaf.axes, leaf.shape, tuple(slice(None) for _ in leaf.shape), tensor_array)
    assert whole.shape == leaf.shape

    index = []
    for size in leaf.shape:
        begin = data.draw(st.integers(0, size - 1))
        index.append(slice(begin, data.draw(st.integers(begin + 1, size))))
    recorder = Recorder(tensor_array)
    part = read_slice(weight, spec, leaf.axes, leaf.shape, index, recorder)
    np.testing.assert_array_equal(part, whole[tuple(index)])
    # A head is read whole where a part of it is wanted.
    slack = 2 * spec.head_dim * part.shape[-1] if "kv_heads" in leaf.axes else 0
    assert recorder.read <= part.size + slack

    entries = [
        Weight(weight.path, weight.name, weight.transpose, number, weight.parts) for number in range(weight.parts)
    ]
    every = tuple(slice(None) for _ in leaf.shape)
    params = [read_slice(entry, spec, leaf.axes, leaf.shape, every, tensor_array) for entry in entries]
    np.testing.assert_array_equal(rebuild(entries, spec, leaf.axes, params), tensor_array)


def test_heads_are_repeated_side_by_side_and_vocabulary_is_padded_with_zeros() -> None:
    spec = SPECS[1]
    found = {leaf.path: leaf for leaf in leaves(spec, 4)}
    leaf = found["blocks.0.attention.k.bias"]
    bias = np.arange(8, dtype=np.float32)
    read = read_slice(Weight("", ""), spec, leaf.axes, leaf.shape, (slice(None),), bias)
    assert read.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    leaf = found["embed.tokens"]
    embedding = np.ones((19, 16), np.float32)
    read = read_slice(Weight("", ""), spec, leaf.axes, leaf.shape, (slice(15, 20), slice(0, 1)), embedding)
    assert read[:, 0].tolist() == [1, 1, 1, 1, 0]


def test_unknown_parameter() -> None:
    with pytest.raises(KeyError, match=r"blocks\.3\.attention\.z\.weight"):
        table(SPECS[0]).weight("blocks.3.attention.z.weight")
