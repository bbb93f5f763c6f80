"""The estimate of temporaries against what XLA allocates for a compiled encode step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from exegpt_jax.models import attention
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.model_config import parse_config
from solver.plan import memory
from solver.plan.buckets import Buckets
from solver.plan.schedule import Schedule, StageSpec


class Fresh:
    """The part of a cache that a whole prompt needs."""

    def fresh(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return k.swapaxes(1, 2), v.swapaxes(1, 2)


def test_blocks_are_the_models() -> None:
    assert (memory.BLOCK_QUERIES, memory.MAX_BLOCKS) == (attention.BLOCK_QUERIES, attention.MAX_BLOCKS)


@pytest.mark.parametrize(("rows", "tokens"), [(8, 64), (2, 512)])
def test_encode_stays_below_the_estimate(rows: int, tokens: int) -> None:
    config = {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 1000,
    }  # fmt: skip
    spec = parse_config(config)
    layout = StageSpec("both", (0, 2), (0,), 1)
    plan = blueprint(spec, layout, "float32", make_mesh(jax.devices()[:1]))

    def encode(params: tuple[jax.Array, ...], ids: jax.Array, positions: jax.Array) -> tuple[jax.Array, object]:
        module = Stage(plan, ()).module(params)
        x, layers = module.forward(ids, positions, None, Fresh())
        return module.head(x[:, -1]).argmax(-1), layers

    params = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in plan.leaves)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    measured = jax.jit(encode).lower(params, ids, ids).compile().memory_analysis()
    schedule = Schedule("rra", rows, 1, 1, rows, (layout,), 1, 1)
    buckets = Buckets((rows,), (tokens,), (rows,), (tokens,))
    (device,) = memory.memory_table(spec, schedule, buckets, "float32", "float32")
    assert 0.3 * device.temporary_bytes < measured.temp_size_in_bytes < device.temporary_bytes
    assert measured.output_size_in_bytes == pytest.approx(device.payload_bytes, rel=0.01)
