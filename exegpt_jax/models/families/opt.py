"""OPT: biases everywhere; the position table begins with two rows that no position uses, and is kept whole."""

from __future__ import annotations

from exegpt_jax.models.families.table import Weight, WeightTable


def weights() -> tuple[Weight, ...]:
    ours, theirs = "blocks.{layer}.", "model.decoder.layers.{layer}."
    projections = (
        ("attention.q", "self_attn.q_proj"),
        ("attention.k", "self_attn.k_proj"),
        ("attention.v", "self_attn.v_proj"),
        ("attention.out", "self_attn.out_proj"),
        ("mlp.up", "fc1"),
        ("mlp.down", "fc2"),
    )
    norms = (("attention_norm", "self_attn_layer_norm"), ("mlp_norm", "final_layer_norm"))
    kinds = ("weight", "bias")
    return (
        Weight("embed.tokens", "model.decoder.embed_tokens.weight"),
        Weight("embed.positions", "model.decoder.embed_positions.weight"),
        *(Weight(f"{ours}{a}.weight", f"{theirs}{b}.weight") for a, b in projections),
        *(Weight(f"{ours}{a}.bias", f"{theirs}{b}.bias") for a, b in projections),
        *(Weight(f"{ours}{a}.{kind}", f"{theirs}{b}.{kind}") for a, b in norms for kind in kinds),
        *(Weight(f"head.norm.{kind}", f"model.decoder.final_layer_norm.{kind}") for kind in kinds),
        Weight("head.weight", "lm_head.weight"),
    )


WEIGHTS = WeightTable(weights(), prefix="model.")
