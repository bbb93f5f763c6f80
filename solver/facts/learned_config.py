"""From the `config.json` of GPT-2 and OPT to a `ModelSpec`: learned positions, layer norms, full attention."""

from __future__ import annotations

from solver.facts.config_fields import (
    MAX_LAYERS,
    MAX_POSITIONS,
    ROPE_FIELDS,
    WINDOW_FIELDS,
    Fields,
    activation,
    checkpoint_dtype,
)
from solver.facts.model_spec import Family, LayerKind, LayerRun, ModelSpec


def parse_gpt2(fields: Fields) -> ModelSpec:
    fields.refuse((*ROPE_FIELDS, *WINDOW_FIELDS, "scale_attn_by_inverse_layer_idx"))
    # Upcasting reorders the same arithmetic; scores are in float32 here anyway.
    if not fields.flag("scale_attn_weights", True):
        raise fields.fail("scale_attn_weights", False, "is not supported; only true is")
    fields.refuse(["reorder_and_upcast_attn"])
    hidden = fields.integer("n_embd", "hidden_size", default=768)
    layers = fields.integer("n_layer", "num_hidden_layers", default=12, high=MAX_LAYERS)
    return _learned_positions(
        fields,
        family="gpt2",
        hidden=hidden,
        heads=fields.integer("n_head", "num_attention_heads", default=12),
        heads_field="n_head",
        vocab=50257,
        mlp_size=fields.integer("n_inner", default=4 * hidden),
        layers=layers,
        max_positions=fields.integer("n_positions", "max_position_embeddings", default=1024),
        position_offset=0,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, high=1.0),
        default_activation="gelu_new",
        bias=True,
    )


def parse_opt(fields: Fields) -> ModelSpec:
    fields.refuse((*ROPE_FIELDS, *WINDOW_FIELDS, "_remove_final_layer_norm"))
    for name in ("do_layer_norm_before", "layer_norm_elementwise_affine"):
        if not fields.flag(name, True):
            raise fields.fail(name, False, "is not supported; only true is")
    hidden = fields.integer("hidden_size", default=768)
    projection = fields.integer("word_embed_proj_dim", default=hidden)
    if projection != hidden:
        raise fields.fail("word_embed_proj_dim", projection, f"is not supported; only hidden_size={hidden} is")
    return _learned_positions(
        fields,
        family="opt",
        hidden=hidden,
        heads=fields.integer("num_attention_heads", default=12),
        heads_field="num_attention_heads",
        vocab=50272,
        mlp_size=fields.integer("ffn_dim", default=3072),
        layers=fields.integer("num_hidden_layers", default=12, high=MAX_LAYERS),
        max_positions=fields.integer("max_position_embeddings", default=2048, high=MAX_POSITIONS),
        position_offset=2,
        norm_eps=1e-5,
        default_activation="relu",
        bias=fields.flag("enable_bias", True),
    )


def _learned_positions(
    fields: Fields,
    *,
    family: Family,
    hidden: int,
    heads: int,
    heads_field: str,
    vocab: int,
    mlp_size: int,
    layers: int,
    max_positions: int,
    position_offset: int,
    norm_eps: float,
    default_activation: str,
    bias: bool,
) -> ModelSpec:
    """What GPT-2 and OPT share: learned positions, layer norms, a plain feed-forward layer, full attention."""
    if hidden % heads:
        raise fields.fail(heads_field, heads, f"does not divide the hidden size {hidden}")
    return ModelSpec(
        family=family,
        vocab_size=fields.integer("vocab_size", default=vocab),
        hidden_size=hidden,
        mlp_size=mlp_size,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        layers=(LayerRun(LayerKind(), layers),),
        max_positions=max_positions,
        norm="layer",
        norm_eps=norm_eps,
        activation=activation(fields, "activation_function", default_activation),
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        qk_norm=False,
        rope=None,
        position_offset=position_offset,
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        dtype=checkpoint_dtype(fields),
    )
