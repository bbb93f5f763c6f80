"""The oracle of engine tests: one request at a time, the whole sequence computed anew for every token, no cache."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from exegpt_jax.engine.api import Sampling
from exegpt_jax.engine.cache import SlotOps
from exegpt_jax.sharding.stage import Stage
from tests.exegpt_jax.test_engine_sampling import scores

# Scores closer than this, relatively, may fall either way (the tie rule of "same tokens").
TIE = 1e-5


class PlainLoop:
    """Answers of one stage on one device, by full recomputation."""

    def __init__(self, stage: Stage, length: int) -> None:
        index, ops = jnp.arange(length)[None, :], SlotOps("float32")

        def last_logits(params: tuple[jax.Array, ...], tokens: jax.Array, count: jax.Array) -> jax.Array:
            model = stage.module(params)
            x, _ = model.forward(tokens, jnp.where(index < count, index, -1), None, ops)
            assert model.head is not None
            return model.head(jax.lax.dynamic_index_in_dim(x[0], count - 1, keepdims=False))

        def output_logits(
            params: tuple[jax.Array, ...], prompt: jax.Array, count: jax.Array, output: jax.Array, told: jax.Array
        ) -> jax.Array:
            """An encoder reads the prompt, its decoder the start token and `told` tokens of output."""
            model = stage.module(params)
            _, layers = model.forward(prompt, jnp.where(index < count, index, -1), None, ops)
            room = tuple(
                (jnp.pad(k, [(0, 0)] * 3 + [(0, length)]), jnp.pad(v, [(0, 0)] * 2 + [(0, length), (0, 0)]))
                for k, v in layers
            )
            positions = jnp.where(index <= told, count + index, -1)
            x, _ = model.forward(output, positions, room, ops, count[None])
            assert model.head is not None
            return model.head(jax.lax.dynamic_index_in_dim(x[0], told, keepdims=False))

        self._stage = stage
        self._length = length
        self._decodes = stage.spec.first_token == "decode"
        self._last_logits = jax.jit(output_logits if self._decodes else last_logits)

    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
        """Of the token behind these, float32 [vocab_size]."""
        parts = [[*prompt], [self._stage.spec.start_token, *output]] if self._decodes else [[*prompt, *output]]
        given = []
        for tokens in parts:
            padded = np.zeros((1, self._length), np.int32)
            padded[0, : len(tokens)] = tokens
            given += [padded, np.int32(len(tokens))]
        if self._decodes:
            given[-1] -= 1
        return np.asarray(self._last_logits(self._stage.params, *given))[: self._stage.spec.vocab_size]

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> tuple[list[int], int]:
        """Every output token, and how many of the first are beyond doubt (all, unless two scores tie)."""
        output: list[int] = []
        sure = None
        while True:
            ranked = scores(self.logits(prompt, output), sampling, list(prompt), output)
            if sampling.temperature >= TIE:
                seed = np.array([(sampling.seed >> 32) & 0xFFFFFFFF, sampling.seed & 0xFFFFFFFF], np.uint32)
                # A decoder's start token has a position of its own.
                position = len(prompt) + len(output) + self._decodes
                key = jax.random.fold_in(jax.random.wrap_key_data(seed), position)
                ranked = ranked + np.asarray(jax.random.gumbel(key, ranked.shape))
            best, second = np.sort(ranked)[::-1][:2]
            if sure is None and best - second <= TIE * max(abs(best), 1.0):
                sure = len(output)
            output.append(int(np.argmax(ranked)))
            ended = output[-1] in sampling.stop_ids or len(output) >= sampling.max_tokens
            if ended or len(prompt) + len(output) > self._length:
                return output, len(output) if sure is None else sure
