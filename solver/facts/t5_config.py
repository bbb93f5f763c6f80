"""From the `config.json` of T5, T5 v1.1 and Flan-T5 to a `ModelSpec`: encoder layers first, then decoder layers.

The three differ in the feed-forward layer (plain or gated) and in the head: the first reads the embedding and scales
what it projects, the others have a head of their own and scale nothing. transformers 5 no longer tells the two apart
by `tie_word_embeddings` but by `scale_decoder_outputs`.
"""

from __future__ import annotations

from typing import cast

from solver.facts.config_fields import ACTIVATIONS, MAX_LAYERS, Fields, checkpoint_dtype
from solver.facts.model_spec import Activation, LayerKind, LayerRun, ModelSpec, RelativePositions

# Relative positions have no end: all long distances share a bucket. This is where sizes stop being plausible.
MOST_POSITIONS = 1 << 20


def parse_t5(fields: Fields) -> ModelSpec:
    """Builds the spec. Raises UnsupportedModel with one line that names the field."""
    if not fields.flag("is_encoder_decoder", True):
        raise fields.fail("is_encoder_decoder", False, "is not supported; an encoder alone generates nothing")
    fields.refuse(("is_decoder", "tie_encoder_decoder"))
    hidden = fields.integer("d_model", "hidden_size", default=512)
    heads = fields.integer("num_heads", "num_attention_heads", default=8)
    encoder = fields.integer("num_layers", "num_hidden_layers", default=6, high=MAX_LAYERS)
    decoder = fields.integer("num_decoder_layers", default=encoder, high=MAX_LAYERS)
    gated, activation = _feed_forward(fields)
    vocab = fields.integer("vocab_size", default=32128)
    tied = fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))
    start = fields.integer("decoder_start_token_id", "pad_token_id", default=0, low=0)
    if start >= vocab:
        raise fields.fail("decoder_start_token_id", start, f"is no token of a vocabulary of {vocab}")
    return ModelSpec(
        family="t5",
        vocab_size=vocab,
        hidden_size=hidden,
        mlp_size=fields.integer("d_ff", default=2048),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.integer("d_kv", "head_dim", default=64),
        layers=(LayerRun(LayerKind("encoder"), encoder), LayerRun(LayerKind("cross"), decoder)),
        max_positions=MOST_POSITIONS,
        norm="rms",
        norm_eps=fields.number("layer_norm_epsilon", 1e-6, high=1.0),
        activation=activation,
        gated_mlp=gated,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope=None,
        position_offset=0,
        tied_embeddings=tied,
        first_token="decode",
        dtype=checkpoint_dtype(fields),
        relative=_relative(fields),
        head_scale=hidden**-0.5 if tied else 1.0,
        start_token=start,
    )


def _relative(fields: Fields) -> RelativePositions:
    """Half of a decoder's buckets stand for single distances; the longest must lie beyond those."""
    buckets = fields.integer("relative_attention_num_buckets", default=32, low=4)
    most = fields.integer("relative_attention_max_distance", default=128, low=buckets // 2 + 1)
    return RelativePositions(buckets, most)


def _feed_forward(fields: Fields) -> tuple[bool, Activation]:
    """Whether the feed-forward layer is gated, and its activation: "relu", "gated-silu", ..."""
    given = fields.get("feed_forward_proj") or "relu"
    name = given.removeprefix("gated-") if isinstance(given, str) else ""
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise fields.fail("feed_forward_proj", given, f"is not supported; give one of {known}, or gated- before it")
    # Published configurations mean the approximation by tanh.
    found = "gelu_tanh" if given == "gated-gelu" else ACTIVATIONS[name]
    return given != name, cast(Activation, found)
