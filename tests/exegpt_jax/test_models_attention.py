"""Attention and rotation against plain NumPy, over every way of calling them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.models import attention
from exegpt_jax.models.rope import frequencies, rotate
from solver.facts.model_spec import Rope


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray, window: int | None) -> np.ndarray:
    """One query at a time in float64; q [rows, tokens, heads, dim], k and v [rows, kv_heads, length, dim]."""
    rows, tokens, heads, dim = q.shape
    out = np.zeros((rows, tokens, heads, dim))
    for row, token, head in np.ndindex(rows, tokens, heads):
        position = positions[row, token]
        first = 0 if window is None else max(0, position - window + 1)
        keys = k[row, head * k.shape[1] // heads, first : position + 1].astype(np.float64)
        values = v[row, head * k.shape[1] // heads, first : position + 1].astype(np.float64)
        scores = keys @ q[row, token, head].astype(np.float64) / np.sqrt(dim)
        weights = np.exp(scores - scores.max())
        out[row, token, head] = weights @ values / weights.sum()
    return out.reshape(rows, tokens, heads * dim)


@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    groups=st.sampled_from([(1, 1), (2, 1), (1, 4), (3, 2)]),
    window=st.sampled_from([None, 1, 3, 100]),
    ahead=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_over_a_cache(
    rows: int, tokens: int, groups: tuple[int, int], window: int | None, ahead: int, seed: int
) -> None:
    """Queries in the middle of a longer cache, whose later entries hold anything finite."""
    rng = np.random.default_rng(seed)
    kv_heads, group = groups
    length = ahead + tokens + 4
    q = rng.standard_normal((rows, tokens, kv_heads * group, 4), np.float32)
    k, v = rng.standard_normal((2, rows, kv_heads, length, 4), np.float32)
    positions = rng.integers(0, ahead + 1, (rows, 1)) + np.arange(tokens)[None, :]
    expected = plain(q, k, v, positions, window)
    k[:, :, positions.max() + 1 :], v[:, :, positions.max() + 1 :] = 1e6, -1e6
    args = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(positions, jnp.int32)
    found = jax.jit(attention.attend_in_blocks, static_argnums=(4, 5))(*args, window, False)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("own_keys", [True, False])
def test_blocks_change_nothing(window: int | None, own_keys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, 50, 4, 8), np.float32))
    k, v = (jnp.asarray(x) for x in rng.standard_normal((2, 2, 2, 50, 8), np.float32))
    positions = jnp.broadcast_to(jnp.arange(50), (2, 50))
    expected = plain(*(np.asarray(x) for x in (q, k, v, positions)), window)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 7)
    for most in (3, 8):
        monkeypatch.setattr(attention, "MAX_BLOCKS", most)
        found = jax.jit(lambda *args: attention.attend_in_blocks(*args, window, own_keys))(q, k, v, positions)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_padding_queries_stay_finite() -> None:
    """A NaN in a padding token's key or value would reach every later query of its row."""
    x = jnp.ones((1, 3, 2, 4))
    view = jnp.ones((1, 2, 3, 4))
    found = attention.attend(x, view, view, jnp.full((1, 3), -1, jnp.int32), None)
    assert bool(jnp.isfinite(found).all())
    assert bool(jnp.isfinite(rotate(x, jnp.full((1, 3), -1, jnp.int32), Rope(10_000.0))).all())


def test_cache_dtype_may_differ() -> None:
    """A float32 cache under bfloat16 activations is read in float32; the result has the activations' dtype."""
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.standard_normal((1, 1, 4, 8)), jnp.bfloat16)
    k, v = (jnp.asarray(x, jnp.float32) for x in rng.standard_normal((2, 1, 2, 6, 8)))
    found = attention.attend(q, k, v, jnp.full((1, 1), 5, jnp.int32), None)
    assert found.dtype == jnp.bfloat16
    expected = plain(np.asarray(q, np.float32), np.asarray(k), np.asarray(v), np.full((1, 1), 5), None)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.02)


def test_keys_are_never_repeated() -> None:
    """Eight query heads on one key head: no intermediate holds the cache eight times."""
    q, view = jnp.zeros((2, 1, 8, 16)), jnp.zeros((2, 1, 64, 16))
    run = jax.jit(lambda q, k, v: attention.attend(q, k, v, jnp.full((2, 1), 63, jnp.int32), None))
    memory = run.lower(q, view, view).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * view.nbytes


@pytest.mark.parametrize("scaling", ["default", "linear", "llama3", "yarn"])
def test_rotation_keeps_lengths_and_depends_on_distance(scaling: str) -> None:
    """What rotary positions are for: scores depend on the distance of query and key alone."""
    rope = Rope(1000.0, scaling, factor=4.0, original_positions=32)  # type: ignore[arg-type]
    factor = frequencies(rope, 8)[1]
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(at_q: int, at_k: int) -> jax.Array:
        turned = (rotate(x, jnp.full((1, 1), at, jnp.int32), rope) for x, at in ((q, at_q), (k, at_k)))
        return jnp.vdot(*turned)

    np.testing.assert_allclose(score(9, 4), score(45, 40), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(score(7, 7), jnp.vdot(q, k) * factor**2, rtol=1e-4, atol=1e-4)
