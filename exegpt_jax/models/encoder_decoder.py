"""Encoder-decoder models (T5, T5 v1.1, Flan-T5): encoder layers, then decoder layers, cut into stages like any others.

    encode:  tokens -> [embed, encoder layers, norm] -> every decoder layer's keys and values of the prompt
    decode:  newest token -> [embed, decoder layers, head] -> scores

A row of the cache holds, in every decoder layer, the prompt's keys and values and behind them those of the output: the
token at output index i stands at position `prompt_tokens` + i. Cross-attention sees what lies before `prompt_tokens`,
self-attention what lies from there on, so that one cache, as long as prompt and output together, serves both.

The interface is `StageModel`'s: without caches `forward` encodes, with caches it decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from exegpt_jax.models.cache_ops import CacheOps, Layer
from exegpt_jax.models.decoder import Embed, Head, StageModel
from exegpt_jax.models.distances import prompt_biases
from exegpt_jax.models.encoder_decoder_blocks import DecoderBlock, EncoderBlock, norm_of, sight_of
from exegpt_jax.models.layers import param
from solver.facts.model_spec import ModelSpec


class EncoderDecoderStage(StageModel):
    """Layers [a, b) of an encoder-decoder model.

    Attributes:
      embed: where the first encoder layer or the first decoder layer is here; or None.
      encoder_distances, decoder_distances: biases [buckets, heads] where layers of that stack are here.
      encoder_norm: where the last encoder layer is here.
      blocks: layer a first.
      head: where the last decoder layer is here; reads the embedding of the same stage where the model ties them.
    """

    def __init__(self, spec: ModelSpec, layers: tuple[int, int], tensor: int, dtype: jnp.dtype) -> None:
        first, end = layers
        if not 0 <= first < end <= spec.num_layers:
            raise ValueError(f"layers: {[first, end]} is no range of the model's {spec.num_layers} layers")
        assert spec.relative is not None
        encoders = spec.encoder_layers
        self.spec = spec
        self.encoders = max(0, min(end, encoders) - first)
        self.embed = Embed(spec, tensor, dtype) if first == 0 or first <= encoders < end else None
        shape = (spec.relative.buckets, spec.heads)
        self.encoder_distances = param(shape, dtype, (None, "heads")) if first < encoders else None
        self.decoder_distances = param(shape, dtype, (None, "heads")) if end > encoders else None
        self.encoder_norm = norm_of(spec, dtype) if first < encoders <= end else None
        kinds = spec.layer_kinds()[first:end]
        makers = [EncoderBlock if kind.name == "encoder" else DecoderBlock for kind in kinds]
        self.blocks = nnx.List([make(spec, tensor, dtype) for make in makers])
        shared = self.embed.tokens if self.embed is not None and spec.tied_embeddings else None
        self.head = Head(spec, tensor, dtype, shared) if end == spec.num_layers else None

    def forward(
        self,
        x: Int[Array, "rows tokens"] | Float[Array, "rows tokens embed"],
        positions: Int[Array, "rows tokens"],
        layers: Sequence[Layer] | None,
        ops: CacheOps[Layer],
        prompt_tokens: Int[Array, "rows"] | None = None,
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        """Encodes prompts, or decodes.

        Args:
          x: token ids, or the activations of the stage before: of prompts, or of output.
          positions: of each token; -1 is padding.
          layers: one cache per decoder layer of the stage; None encodes.
          ops: the cache's functions.
          prompt_tokens: of each row, where it decodes.

        Returns:
          Activations (of prompts: the next stage's input, which decoder layers hand on as it is), and one cache per
          decoder layer.
        """
        if layers is None:
            return self._encode(x, positions, ops)
        assert prompt_tokens is not None
        return self._decode(x, positions, layers, ops, prompt_tokens)

    def _encode(
        self, x: Array, positions: Int[Array, "rows tokens"], ops: CacheOps[Layer]
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        if self.encoder_distances is not None:
            assert self.spec.relative is not None
            x = self._embedded(x, positions)
            seen = (positions >= 0)[:, None, None, :]
            biases = prompt_biases(self.encoder_distances[...], self.spec.relative, positions.shape[1])
            for index, block in enumerate(self.blocks[: self.encoders]):
                with jax.named_scope(f"encoder{index}"):
                    x = block(x, seen, biases)
            x = x if self.encoder_norm is None else self.encoder_norm(x)
        return x, tuple(block.fresh(x, ops) for block in self.blocks[self.encoders :])

    def _decode(
        self,
        x: Array,
        positions: Int[Array, "rows tokens"],
        layers: Sequence[Layer],
        ops: CacheOps[Layer],
        prompt_tokens: Int[Array, "rows"],
    ) -> tuple[Float[Array, "rows tokens embed"], tuple[Layer, ...]]:
        assert self.decoder_distances is not None
        x = self._embedded(x, positions)
        length = ops.view(layers[0])[0].shape[2]
        sight = sight_of(self.spec, self.decoder_distances[...], positions, prompt_tokens, length)
        caches: list[Layer] = []
        for index, block in enumerate(self.blocks[self.encoders :]):
            with jax.named_scope(f"decoder{index}"):
                x, cache = block(x, sight, layers[index], ops)
                caches.append(cache)
        return x, tuple(caches)

    def _embedded(self, x: Array, positions: Int[Array, "rows tokens"]) -> Float[Array, "rows tokens embed"]:
        """Token ids as activations; what comes from another stage is that already."""
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return x
        assert self.embed is not None
        with jax.named_scope("embed"):
            return self.embed(x, positions)
