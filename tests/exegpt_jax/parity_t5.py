"""Our side of the parity with transformers for encoder-decoder models: encodes, then decodes token by token.

As in `parity`, over the plainest cache; `golden` holds what `tests/tools/golden_t5.py` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from exegpt_jax.sharding.stage import Stage

Layer = tuple[Array, Array]
Carry = tuple[Array, Array, tuple[Layer, ...]]


class Ops(Protocol):
    """The cache's functions, as `exegpt_jax.models.cache_ops` has them."""

    def write(self, layer: Layer, k: Array, v: Array, positions: Array) -> Layer: ...

    def view(self, layer: Layer) -> Layer: ...

    def fresh(self, k: Array, v: Array) -> Layer: ...


def encoded(stages: Sequence[Stage], params: Sequence, prompts: Array, lengths: Array, ops: Ops, room: int) -> list:
    """One tuple of caches per stage: every decoder layer's, with the prompts in it and `room` positions behind them."""
    index = jnp.arange(prompts.shape[1])[None, :]
    positions = jnp.where(index < lengths[:, None], index, -1)
    x, caches = prompts, []
    for stage, arrays in zip(stages, params, strict=True):
        x, layers = stage.module(arrays).forward(x, positions, None, ops)
        caches.append(jax.tree.map(lambda held: jnp.pad(held, [(0, 0), (0, 0), (0, room), (0, 0)]), layers))
    return caches


def generator(
    stages: Sequence[Stage], ops: Ops, steps: int, seen: int
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function of prompts and lengths: greedy tokens [rows, steps], and the scores of the first `seen` of them."""
    spec = stages[-1].spec

    @jax.jit
    def run(params: list[tuple[Array, ...]], prompts: Array, lengths: Array) -> tuple[Array, Array]:
        caches = encoded(stages, params, prompts, lengths, ops, steps)

        def step(carry: Carry, _: None) -> tuple[Carry, tuple[Array, Array]]:
            token, position, caches = carry
            x, after = token[:, None], []
            for stage, arrays, layers in zip(stages, params, caches, strict=True):
                model = stage.module(arrays)
                if layers:
                    x, layers = model.forward(x, position[:, None], layers, ops, lengths)
                after.append(layers)
            logits = model.head(x[:, 0])[:, : spec.vocab_size]
            return (jnp.argmax(logits, axis=-1), position + 1, after), (jnp.argmax(logits, axis=-1), logits)

        begin = (jnp.full_like(lengths, spec.start_token), lengths, caches)
        _, (tokens, logits) = jax.lax.scan(step, begin, length=steps)
        return tokens.T, logits[:seen].swapaxes(0, 1)

    params = [stage.params for stage in stages]
    return lambda prompts, lengths: jax.device_get(run(params, jnp.asarray(prompts), jnp.asarray(lengths)))
