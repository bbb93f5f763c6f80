"""T5 piece by piece: distances, sub-layers and stages compute what transformers computes."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from exegpt_jax.models.distances import buckets_of, prompt_biases
from exegpt_jax.models.encoder_decoder_blocks import DecoderBlock, EncoderBlock, sight_of
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.parameters import parameters
from solver.plan.schedule import StageSpec
from tests.exegpt_jax import parity_t5
from tests.exegpt_jax.parity import LOGITS_TOLERANCE, Case, PlainCache, load, read_case

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.glob("t5*"))
TOLERANCE = 2e-5


@functools.cache
def case_of(name: str) -> Case:
    return read_case(GOLDEN / name)


@pytest.mark.parametrize("name", CASES)
def test_buckets_are_those_of_transformers(name: str) -> None:
    case = case_of(name)
    assert case.spec.relative is not None
    for key, both_ways in (("prompt_buckets", True), ("output_buckets", False)):
        expected = case.golden[key]
        most = len(expected) // 2
        found = buckets_of(np.arange(-most, most + 1), case.spec.relative, both_ways=both_ways)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) > case.spec.relative.buckets // 2


@pytest.mark.parametrize("tensor", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_sub_layers(name: str, tensor: int, full: bool) -> None:
    """Every part by itself, fed with the reference's own input."""
    if not full and tensor != 1:
        pytest.skip("every case on one device; on four in make test-full")
    case = case_of(name)
    golden, spec, ops = case.golden, case.spec, PlainCache()
    stage = load(case, tensor)
    model = stage.module(stage.params)
    prompt, output = jnp.asarray(golden["prompts"][:1]), jnp.asarray(golden["output"][None])
    tokens, length = prompt.shape[1], prompt.shape[1] + output.shape[1]
    positions = jnp.arange(tokens)[None, :]

    def close(ours: jnp.ndarray, theirs: np.ndarray) -> None:
        np.testing.assert_allclose(np.asarray(ours)[0], theirs, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))

    assert spec.relative is not None
    close(model.embed(prompt, positions), golden["embedding"])
    biases = prompt_biases(model.encoder_distances[...], spec.relative, tokens)
    seen = jnp.ones((1, 1, 1, tokens), bool)
    x = golden["embedding"][None]
    for number in range(spec.encoder_layers):
        block = model.blocks[number]
        assert isinstance(block, EncoderBlock)
        close(block.attend(jnp.asarray(x), seen, biases), golden[f"attention.{number}"])
        close(block.mlp(block.mlp_norm(jnp.asarray(x + golden[f"attention.{number}"]))), golden[f"mlp.{number}"])
        close(block(jnp.asarray(x), seen, biases), golden[f"block.{number}"])
        x = golden[f"block.{number}"][None]
    close(model.encoder_norm(jnp.asarray(x)), golden["encoded"])

    own = tokens + jnp.arange(output.shape[1])[None, :]
    close(model.embed(output, own), golden["output_embedding"])
    sight = sight_of(spec, model.decoder_distances[...], own, jnp.full((1,), tokens), length)
    x = golden["output_embedding"][None]
    for number in range(spec.encoder_layers, spec.num_layers):
        block = model.blocks[number]
        assert isinstance(block, DecoderBlock)
        empty = block.fresh(jnp.asarray(golden["encoded"][None]), ops)
        empty = tuple(jnp.pad(held, [(0, 0), (0, 0), (0, length - tokens), (0, 0)]) for held in empty)
        attention, layer = block.attend_to_output(jnp.asarray(x), sight, empty, ops)
        close(attention, golden[f"attention.{number}"])
        between = x + golden[f"attention.{number}"]
        close(block.attend_to_prompt(jnp.asarray(between), sight, layer, ops), golden[f"cross.{number}"])
        behind = between + golden[f"cross.{number}"]
        close(block.mlp(block.mlp_norm(jnp.asarray(behind))), golden[f"mlp.{number}"])
        close(block(jnp.asarray(x), sight, empty, ops)[0], golden[f"block.{number}"])
        x = golden[f"block.{number}"][None]
    close(model.head(jnp.asarray(x))[..., : spec.vocab_size], golden["logits"][0])


def test_stages_compose(full: bool) -> None:
    """Any cut of the layers gives the same tokens and scores, one within the encoder and one within the decoder too."""
    case = case_of("t5-v1.1")
    prompts, lengths = case.golden["prompts"], case.golden["lengths"]
    assert (case.spec.encoder_layers, case.spec.num_layers) == (3, 5)
    for cut in ([(0, 2), (2, 4), (4, 5)], [(0, 3), (3, 5)], [(0, 3), (3, 4), (4, 5)])[: None if full else 1]:
        stages = [load(case, 1, layers) for layers in cut]
        tokens, logits = parity_t5.generator(stages, PlainCache(), 12, 12)(prompts, lengths)
        np.testing.assert_array_equal(tokens, case.golden["tokens"][:, :12])
        np.testing.assert_allclose(logits, case.golden["logits"], atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_parameters_are_those_that_bytes_are_counted_by(name: str) -> None:
    spec = case_of(name).spec
    mesh = make_mesh(jax.devices()[:2])
    for layers in ((0, spec.num_layers), (0, spec.encoder_layers), (spec.encoder_layers, spec.num_layers), (1, 3)):
        leaves = blueprint(spec, StageSpec("both", layers, (0, 1), 2), "float32", mesh).leaves
        expected = [(each.path, each.shape, each.axes) for each in parameters(spec, layers, 2)]
        assert sorted((leaf.path, leaf.shape, leaf.axes) for leaf in leaves) == sorted(expected)


def test_tensor_parallel_moves_only_sums() -> None:
    """Two all-reduces an encoder layer, three a decoder layer, one for each embedding; biases need none."""
    case, ops = case_of("t5-v1.1"), PlainCache()
    encoders, decoders = case.spec.encoder_layers, case.spec.num_layers - case.spec.encoder_layers
    stage = load(case, 4)
    tokens, index = jnp.zeros((2, 10), jnp.int32), jnp.broadcast_to(jnp.arange(10), (2, 10))

    def encode(params: tuple[jax.Array, ...]) -> object:
        return stage.module(params).forward(tokens, index, None, ops)

    def decode(params: tuple[jax.Array, ...], layers: tuple[tuple[jax.Array, jax.Array], ...]) -> jax.Array:
        model = stage.module(params)
        return model.head(model.forward(tokens[:, :1], index[:, 6:7], layers, ops, index[:, 4])[0])

    kinds = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    found = Counter(re.findall(kinds, jax.jit(encode).lower(stage.params).compile().as_text()))
    assert found == {"all-reduce": 1 + 2 * encoders}
    sharding = NamedSharding(stage.mesh, PartitionSpec(None, "tensor"))
    shape = jax.ShapeDtypeStruct((2, case.spec.heads, 10, case.spec.head_dim), jnp.float32, sharding=sharding)
    lowered = jax.jit(decode).lower(stage.params, ((shape, shape),) * decoders)
    assert Counter(re.findall(kinds, lowered.compile().as_text())) == {"all-reduce": 1 + 3 * decoders}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(dtype: str) -> None:
    """Activations and keys in the stage's dtype, logits in float32; no silent promotion, no silent broadcast."""
    spec, ops = case_of("t5").spec, PlainCache()
    plan = blueprint(spec, StageSpec("both", (0, spec.num_layers), (0,), 1), dtype, make_mesh(jax.devices()[:1]))
    params = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in plan.leaves)
    tokens, index = jnp.zeros((2, 10), jnp.int32), jnp.broadcast_to(jnp.arange(10), (2, 10))

    def run(params: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        model = Stage(plan, params).module(params)
        x, layers = model.forward(tokens, index, None, ops)
        y, layers = model.forward(tokens[:, :1], index[:, 6:7], layers, ops, index[:, 4])
        return model.head(y), x, y, *jax.tree.leaves(layers)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        scores, *rest = jax.eval_shape(run, params)
    assert {array.dtype for array in rest} == {jnp.dtype(dtype)}
    assert scores.dtype == jnp.float32
