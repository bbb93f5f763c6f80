"""What a model is: its shapes, as every part of the house counts them.

A `ModelSpec` is read once from a Hugging Face `config.json` (`solver.facts.model_config`) and then drives everything:
the Flax modules, the weight tables, the byte accounting and the planner. Layers are a run-length list of kinds, because
layers of one kind cost the same and are profiled once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Family = Literal["gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      base: the angle base (`rope_theta`).
      scaling: "default", "linear", "llama3" or "yarn"; the remaining fields belong to the scalings that name them.
      factor: linear, llama3, yarn: how far positions are stretched.
      low_freq_factor: llama3.
      high_freq_factor: llama3.
      original_positions: llama3, yarn: positions before the stretch, in tokens.
      beta_fast: yarn.
      beta_slow: yarn.
      attention_factor: yarn: factor on cosine and sine; 0 means 0.1 ln(factor) + 1.
    """

    base: float
    scaling: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0


@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """Distances of query and key that are learned as biases on attention scores, one table per stack (T5).

    Attributes:
      buckets: rows of a table; distances share them, the more the longer they are.
      most_tokens: distances from here on share one.
    """

    buckets: int
    most_tokens: int


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What makes a layer cost what it costs, beyond the model's widths.

    Attributes:
      name: "decoder" runs in both phases. In encoder-decoder models "encoder" runs over prompts alone, and "cross", a
        decoder layer, over output alone: it attends to the output so far and to the encoded prompt.
      window_tokens: sliding attention window: a query at p sees keys in (p - window, p]; None sees all.
    """

    name: Literal["decoder", "encoder", "cross"] = "decoder"
    window_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class LayerRun:
    kind: LayerKind
    count: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shapes and variants of one model.

    Attributes:
      family: which table of weight names reads its checkpoint.
      vocab_size: rows of the embedding before padding to a tensor degree.
      hidden_size: width of the residual stream.
      mlp_size: width of the feed-forward layer.
      heads: query heads.
      kv_heads: key/value heads before replication to a tensor degree.
      head_dim: width of one head.
      layers: runs of layer kinds, first layer first; those of an encoder stand before those of its decoder.
      max_positions: longest context in tokens (prompt plus output).
      norm: "rms" or "layer" normalisation.
      norm_eps: its epsilon.
      activation: of the feed-forward layer.
      gated_mlp: gate and up projections multiplied (Llama), or one plain projection (GPT-2, OPT).
      qkv_bias, output_bias, mlp_bias: which projections carry a bias.
      qk_norm: RMS normalisation of each query and key head (Qwen3).
      rope: rotary positions, or None where positions are learned or `relative`.
      position_offset: rows skipped at the start of the learned position table (OPT: 2).
      tied_embeddings: the head reads the embedding matrix.
      first_token: "encode" where the encode phase samples the first output token.
      dtype: the checkpoint's dtype as its config names it.
      relative: relative positions, or None.
      head_scale: factor on what the head projects to the vocabulary.
      start_token: what a decoder that has seen no output reads first; encoder-decoder models alone.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    mlp_size: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[LayerRun, ...]
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Rope | None
    position_offset: int
    tied_embeddings: bool
    first_token: Literal["encode", "decode"] = "encode"
    dtype: str = "float32"
    relative: RelativePositions | None = None
    head_scale: float = 1.0
    start_token: int = 0

    @property
    def num_layers(self) -> int:
        return sum(run.count for run in self.layers)

    @property
    def encoder_layers(self) -> int:
        """How many layers, the first ones, only encode: 0 in decoder-only models."""
        return sum(run.count for run in self.layers if run.kind.name == "encoder")

    def cached_layers(self, layers: tuple[int, int]) -> int:
        """How many of the layers [first, end) keep keys and values."""
        first, end = layers
        return max(0, end - max(first, self.encoder_layers))

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """One kind per layer, the run-length list spelled out."""
        return tuple(run.kind for run in self.layers for _ in range(run.count))

    def padded_vocab(self, tensor: int) -> int:
        """Rows of embedding and head once padded so that `tensor` devices share them evenly."""
        return math.ceil(self.vocab_size / tensor) * tensor

    def stored_kv_heads(self, tensor: int) -> int:
        """Key/value heads once each is repeated often enough that `tensor` devices share them evenly."""
        return math.lcm(self.kv_heads, tensor)
