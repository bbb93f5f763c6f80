"""Llama 1-3, and the names that Mistral and Qwen share with it."""

from __future__ import annotations

from exegpt_jax.models.families.table import Weight, WeightTable


def weights() -> tuple[Weight, ...]:
    """Everything as it is stored; biases and head norms where a configuration has them."""
    ours_theirs = (
        ("attention.q", "self_attn.q_proj"),
        ("attention.k", "self_attn.k_proj"),
        ("attention.v", "self_attn.v_proj"),
        ("attention.out", "self_attn.o_proj"),
        ("mlp.gate", "mlp.gate_proj"),
        ("mlp.up", "mlp.up_proj"),
        ("mlp.down", "mlp.down_proj"),
    )
    norms = (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
        ("attention.q_norm", "self_attn.q_norm"),
        ("attention.k_norm", "self_attn.k_norm"),
    )
    ours, theirs = "blocks.{layer}.", "model.layers.{layer}."
    return (
        Weight("embed.tokens", "model.embed_tokens.weight"),
        *(Weight(f"{ours}{a}.weight", f"{theirs}{b}.weight") for a, b in ours_theirs),
        *(Weight(f"{ours}{a}.bias", f"{theirs}{b}.bias") for a, b in ours_theirs),
        *(Weight(f"{ours}{a}.weight", f"{theirs}{b}.weight") for a, b in norms),
        Weight("head.norm.weight", "model.norm.weight"),
        Weight("head.weight", "lm_head.weight"),
    )


WEIGHTS = WeightTable(weights(), prefix="model.", ignored=("*.rotary_emb.inv_freq",))
