"""The cache's functions against NumPy arrays indexed by (row, position): what was written is what is viewed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.engine import cache as kv

ROWS, LENGTH, HEADS, DIM = 5, 12, 2, 3
OPS = kv.SlotOps("float32")

write = jax.jit(OPS.write)
view = jax.jit(OPS.view)
fresh = jax.jit(OPS.fresh)
cut = jax.jit(kv.cut, static_argnums=(1, 2))
put_back = jax.jit(kv.put_back, static_argnums=4)
insert = jax.jit(kv.insert)
gather = jax.jit(kv.gather)
move = jax.jit(kv.move)


def plain(rows: int, length: int, seed: int) -> np.ndarray:
    """Keys and values [2, rows, length, heads, head_dim] in the order in which models make them."""
    return np.random.default_rng(seed).normal(size=(2, rows, length, HEADS, DIM)).astype(np.float32)


def held(arrays: np.ndarray) -> kv.Layer:
    return fresh(*arrays)


def seen(layer: kv.Layer) -> np.ndarray:
    """Back to the order of `plain`."""
    return np.stack([np.asarray(part).swapaxes(1, 2) for part in view(layer)])


@given(
    st.lists(st.lists(st.integers(-1, LENGTH + 2), min_size=3, max_size=3, unique=True), min_size=ROWS, max_size=ROWS)
)
def test_write_puts_each_token_at_its_position_and_padding_nowhere(positions: list[list[int]]) -> None:
    before, new = plain(ROWS, LENGTH, 0), plain(ROWS, 3, 1)
    after = seen(write(held(before), *new, np.array(positions, np.int32)))
    expected = before.copy()
    for row, places in enumerate(positions):
        for token, position in enumerate(places):
            if 0 <= position < LENGTH:
                expected[:, row, position] = new[:, row, token]
    np.testing.assert_array_equal(after, expected)


@given(st.lists(st.integers(0, ROWS + 2), min_size=3, max_size=3, unique=True))
def test_insert_fills_the_start_of_slots_and_drops_what_lies_beyond(slots: list[int]) -> None:
    before, new = plain(ROWS, LENGTH, 0), plain(3, 7, 1)
    (after,) = insert((held(before),), (held(new),), np.array(slots, np.int32))
    expected = before.copy()
    for row, slot in enumerate(slots):
        if slot < ROWS:
            expected[:, slot, :7] = new[:, row]
    np.testing.assert_array_equal(seen(after), expected)


@given(st.permutations(range(ROWS)), st.integers(0, 2))
def test_move_copies_slots_and_padding_moves_nothing(order: list[int], moves: int) -> None:
    sources, targets = order[:moves], order[moves : 2 * moves]
    padded = [np.array([*slots, *[ROWS] * (2 - moves)], np.int32) for slots in (sources, targets)]
    before = plain(ROWS, LENGTH, 0)
    (after,) = move((held(before),), *padded)
    expected = before.copy()
    expected[:, targets] = before[:, sources]
    np.testing.assert_array_equal(seen(after), expected)


def test_gather_copies_whole_slots_out() -> None:
    before = plain(ROWS, LENGTH, 0)
    (out,) = gather((held(before),), np.array([3, 0], np.int32))
    np.testing.assert_array_equal(seen(out), before[:, [3, 0]])


@pytest.mark.parametrize("most", [1, 8])
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=3))
def test_a_view_is_cut_out_and_put_back(most: int, changes: list[tuple[int, int]]) -> None:
    """Whole (many positions may change) or position by position, the cache holds what the view holds now."""
    before = plain(ROWS, LENGTH, 0)
    (part,) = cut((held(before),), 3, 8)
    np.testing.assert_array_equal(seen(part), before[:, :3, :8])
    expected, changed = before.copy(), before[:, :3, :8].copy()
    for row, (first, count) in enumerate(changes):
        changed[:, row, first : first + count] += 1
        expected[:, row, first : min(first + count, 8)] += 1
    first = np.array([first for first, _ in changes], np.int32)
    end = np.array([min(first + count, 8) for first, count in changes], np.int32)
    (after,) = put_back((held(before),), (held(changed),), first, end, most)
    np.testing.assert_array_equal(seen(after), expected)


def test_a_view_of_everything_is_the_cache() -> None:
    layers = (held(plain(ROWS, LENGTH, 0)),)
    view = (held(plain(ROWS, LENGTH, 1)),)
    assert kv.put_back(layers, view, jnp.zeros(ROWS, jnp.int32), jnp.zeros(ROWS, jnp.int32), 1) is view


def test_keys_and_values_take_the_caches_own_dtype() -> None:
    ops = kv.SlotOps("bfloat16")
    new = plain(ROWS, 3, 1)
    layer = ops.fresh(*jnp.asarray(new))
    assert {part.dtype for part in layer} == {jnp.dtype("bfloat16")}
    positions = jnp.zeros((ROWS, 3), jnp.int32) - 1
    assert {part.dtype for part in ops.write(layer, *jnp.asarray(new), positions)} == {jnp.dtype("bfloat16")}


def test_one_token_is_written_in_place() -> None:
    """A donated cache in a loop: nothing of its size is copied."""

    def steps(layer: kv.Layer, new: jax.Array, count: jax.Array) -> kv.Layer:
        def body(carry: tuple[jax.Array, kv.Layer]) -> tuple[jax.Array, kv.Layer]:
            step, held = carry
            return step + 1, OPS.write(held, new, new, jnp.full((8, 1), step))

        return jax.lax.while_loop(lambda carry: carry[0] < count, body, (jnp.int32(0), layer))[1]

    abstract = jax.eval_shape(OPS.fresh, *[jax.ShapeDtypeStruct((8, 512, HEADS, 16), jnp.float32)] * 2)
    new = jax.ShapeDtypeStruct((8, 1, HEADS, 16), jnp.float32)
    compiled = jax.jit(steps, donate_argnums=0).lower(abstract, new, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    memory = compiled.memory_analysis()
    whole = 2 * 8 * 512 * HEADS * 16 * 4
    assert memory.alias_size_in_bytes == whole
    assert memory.temp_size_in_bytes < whole / 20
