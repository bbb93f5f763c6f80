"""Every family computes what transformers computes: logits, greedy tokens, and each sub-layer by itself."""

from __future__ import annotations

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.exegpt_jax.parity import Case, PlainCache, compare, load, read_case

CASES = sorted(path.name for path in (Path(__file__).parent / "golden").iterdir())
# What a sub-layer's output may differ by, given the reference's input to it.
TOLERANCE = 2e-5


@functools.cache
def case_of(name: str) -> Case:
    return read_case(Path(__file__).parent / "golden" / name)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_batched(name: str, tensor: int, full: bool) -> None:
    if not full and name.startswith("t5") and (CASES.index(name) + tensor.bit_length()) % 4 != 2:
        pytest.skip("T5 at one degree a case; all of them in make test-full")
    difference = compare(case_of(name), tensor, batched=True)
    assert difference.matches, difference


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_alone(name: str, tensor: int, full: bool) -> None:
    if not full and ((CASES.index(name) + tensor.bit_length()) % 4 or name.startswith("t5-")):
        pytest.skip("every case at one of the degrees, one of T5's; all of them in make test-full")
    difference = compare(case_of(name), tensor, batched=False)
    assert difference.matches, difference


@pytest.mark.parametrize("tensor", [1, 4])
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("t5")])
def test_sub_layers(name: str, tensor: int, full: bool) -> None:
    """Embedding, attention, feed-forward, block and head, each fed with the reference's own input."""
    if not full and tensor != 1 and CASES.index(name) % 4:
        pytest.skip("every case on one device, some on four; all of them in make test-full")
    case = case_of(name)
    golden, ops = case.golden, PlainCache()
    stage = load(case, tensor)
    model = stage.module(stage.params)
    tokens = jnp.asarray(golden["prompts"][:1])
    positions = jnp.arange(tokens.shape[1])[None, :]
    x = np.asarray(golden["embedding"])[None]

    def close(ours: jnp.ndarray, theirs: np.ndarray) -> None:
        np.testing.assert_allclose(np.asarray(ours)[0], theirs, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))

    close(model.embed(tokens, positions), golden["embedding"])
    for index, block in enumerate(model.blocks):
        attention, _ = block.attention(block.attention_norm(jnp.asarray(x)), positions, None, ops)
        close(attention, golden[f"attention.{index}"])
        close(block.mlp(block.mlp_norm(jnp.asarray(x + golden[f"attention.{index}"]))), golden[f"mlp.{index}"])
        close(block(jnp.asarray(x), positions, None, ops)[0], golden[f"block.{index}"])
        x = golden[f"block.{index}"][None]
    close(model.head(jnp.asarray(x))[..., : case.spec.vocab_size], golden["logits"][0])
