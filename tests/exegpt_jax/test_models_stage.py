"""Stages compose, cut evenly over devices, and say in one line where they cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from exegpt_jax.models.decoder import PADDING_SCORE
from exegpt_jax.models.random import random_stage
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.rules import Rules
from exegpt_jax.sharding.stage import Blueprint, Stage, blueprint
from solver.facts.model_config import parse_config
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec
from tests.exegpt_jax.parity import PlainCache

OPS = PlainCache()


def llama(**changes: object) -> ModelSpec:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 8}
    more = {"num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64, "model_type": "llama"}
    return parse_config(sizes | more | changes)


def logits(stages: list[Stage], tokens: jax.Array, positions: jax.Array) -> np.ndarray:
    @jax.jit
    def run(params: list[tuple[jax.Array, ...]], x: jax.Array) -> jax.Array:
        for stage, arrays in zip(stages, params, strict=True):
            model = stage.module(arrays)
            x, _ = model.forward(x, positions, None, OPS)
        return model.head(x)

    return np.asarray(run([stage.params for stage in stages], tokens))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 10)))
POSITIONS = jnp.broadcast_to(jnp.arange(10), (2, 10))


@pytest.mark.parametrize("tied", [True, False])
def test_stages_compose(tied: bool) -> None:
    """Any cut of the layers into stages computes the same, tied heads with their own copy of the embedding."""
    spec = llama(tie_word_embeddings=tied, num_hidden_layers=3)
    whole = logits([random_stage(spec)], TOKENS, POSITIONS)
    for cut in ([(0, 1), (1, 3)], [(0, 1), (1, 2), (2, 3)]):
        parts = [random_stage(spec, layers=layers) for layers in cut]
        np.testing.assert_allclose(logits(parts, TOKENS, POSITIONS), whole, atol=1e-5)
    paths = [leaf.path for leaf in random_stage(spec, layers=(2, 3)).blueprint.leaves]
    assert "blocks.2.attention.q.weight" in paths
    assert "blocks.0.attention.q.weight" not in paths
    assert ("head.weight" in [leaf.path for leaf in random_stage(spec).blueprint.leaves]) is not tied


def test_chunks_compute_the_same_as_the_whole_prompt() -> None:
    """Encoding a prompt in chunks over a cache equals encoding it at once."""
    stage = random_stage(llama(num_hidden_layers=2))

    @jax.jit
    def run(params: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        model = stage.module(params)
        x, _ = model.forward(TOKENS, POSITIONS, None, OPS)
        layers = tuple((jnp.zeros((2, 2, 16, 4)),) * 2 for _ in range(2))
        parts = []
        for begin, end in ((0, 4), (4, 9), (9, 10)):
            part, layers = model.forward(TOKENS[:, begin:end], POSITIONS[:, begin:end], layers, OPS)
            parts.append(part)
        return x, jnp.concatenate(parts, axis=1)

    whole, chunked = run(stage.params)
    np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_padding_reaches_nobody() -> None:
    """Tokens at position -1 change neither other tokens nor the cache, and leave nothing infinite behind."""
    stage = random_stage(llama(num_hidden_layers=2))

    @jax.jit
    def run(params: tuple[jax.Array, ...], tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, object]:
        return stage.module(params).forward(tokens, positions, None, OPS)

    x, layers = run(stage.params, TOKENS, jnp.where(jnp.arange(10) < 6, POSITIONS, -1))
    short, _ = run(stage.params, TOKENS[:, :6], POSITIONS[:, :6])
    np.testing.assert_allclose(x[:, :6], short, atol=1e-5)
    assert all(bool(jnp.isfinite(array).all()) for array in jax.tree.leaves(layers))


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_tensor_parallel_moves_only_sums(tensor: int) -> None:
    """Two all-reduces a layer and one for the embedding: nothing is gathered, no matter how few key/value heads."""
    stage = random_stage(llama(), tensor=tensor)

    def run(params: tuple[jax.Array, ...], tokens: jax.Array, positions: jax.Array) -> jax.Array:
        model = stage.module(params)
        return model.head(model.forward(tokens, positions, None, OPS)[0])

    text = jax.jit(run).lower(stage.params, TOKENS, POSITIONS).compile().as_text()
    found = Counter(re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(", text))
    assert found == {"all-reduce": 1 + 2 * 4}


def test_sizes_and_shardings() -> None:
    """Key/value heads repeated, vocabulary padded, every cut even; each device holds its share alone."""
    stage = random_stage(llama(), tensor=8)
    leaves = {leaf.path: (leaf, array) for leaf, array in zip(stage.blueprint.leaves, stage.params, strict=True)}
    assert leaves["embed.tokens"][0].shape == (64, 32)
    assert leaves["blocks.3.attention.k.weight"][0].shape == (8 * 4, 32)
    for leaf, array in leaves.values():
        cut = any(axis in ("vocab", "heads", "kv_heads", "mlp") for axis in leaf.axes)
        assert array.addressable_shards[0].data.size * (8 if cut else 1) == array.size
    scores = logits([stage], TOKENS, POSITIONS)
    assert (scores[..., 61:] == np.float32(PADDING_SCORE)).all()
    assert np.abs(scores[..., :61]).max() < 100


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(dtype: str) -> None:
    """Activations in the stage's dtype, logits in float32; no silent promotion, no silent broadcast."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for spec in (llama(), llama(model_type="qwen3", head_dim=8), llama(model_type="opt", ffn_dim=64)):
            stage = StageSpec("both", (0, 4), (0,), 1)
            plan = blueprint(spec, stage, dtype, make_mesh(jax.devices()[:1]))
            params = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in plan.leaves]

            def run(params: Sequence[jax.Array], plan: Blueprint = plan) -> tuple[jax.Array, ...]:
                model = Stage(plan, tuple(params)).module(params)
                x, layers = model.forward(TOKENS, POSITIONS, None, OPS)
                x, layers = model.forward(TOKENS[:, :1], POSITIONS[:, :1], layers, OPS)
                return model.head(x), x, *jax.tree.leaves(layers)

            scores, *rest = jax.eval_shape(run, params)
            assert {array.dtype for array in rest} == {jnp.dtype(dtype)}
            assert scores.dtype == jnp.float32


def test_refusals_are_one_line() -> None:
    mesh = make_mesh(jax.devices()[:8])
    with pytest.raises(ValueError, match="tensor: 8 does not divide the model's 4 attention heads"):
        blueprint(llama(num_attention_heads=4), StageSpec("both", (0, 4), tuple(range(8)), 8), "float32", mesh)
    with pytest.raises(ValueError, match="the mesh has 8 devices"):
        blueprint(llama(), StageSpec("both", (0, 4), (0,), 1), "float32", mesh)
    with pytest.raises(ValueError, match="is no range of the model's 4 layers"):
        random_stage(llama(), layers=(2, 5))
    with pytest.raises(ValueError, match="one stands twice"):
        make_mesh([jax.devices()[0]] * 2)
    stage = random_stage(llama())
    with pytest.raises(ValueError, match="arrays for"):
        stage.blueprint.bind(stage.params[1:])
    with pytest.raises(ValueError, match=r"head\.weight: bfloat16"):
        stage.blueprint.bind([*stage.params[:-1], stage.params[-1].astype(jnp.bfloat16)])


def test_rules() -> None:
    mesh = make_mesh(jax.devices()[:4])
    rules = Rules()
    assert rules.spec(("vocab", "embed"), (64, 32), mesh) == PartitionSpec("tensor", None)
    assert rules.spec(("rows", "kv_heads", None, None), (3, 4, 7, 5), mesh) == PartitionSpec(
        "data", "tensor", None, None
    )
    for axes, shape, message in [
        (("heads", "mlp"), (4, 4), "mlp: collides with heads"),
        (("heads",), (6,), "heads: 6 is not divisible by the 4 devices"),
        (("head",), (4,), "'head' is unknown"),
        (("heads",), (4, 4), "names 1 dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            rules.spec(axes, shape, mesh)
    with pytest.raises(ValueError, match="which the mesh"):
        Rules(mlp="expert").spec(("mlp",), (4,), mesh)
