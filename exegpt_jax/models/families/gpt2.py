"""GPT-2: projections stored [inputs, outputs], so transposed here; query, key and value fused."""

from __future__ import annotations

from exegpt_jax.models.families.table import Weight, WeightTable


def weights() -> tuple[Weight, ...]:
    ours, theirs = "blocks.{layer}.", "transformer.h.{layer}."
    projections = (("attention.out", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj"))
    norms = (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))
    kinds = ("weight", "bias")
    return (
        Weight("embed.tokens", "transformer.wte.weight"),
        Weight("embed.positions", "transformer.wpe.weight"),
        *(
            Weight(f"{ours}attention.{name}.{kind}", f"{theirs}attn.c_attn.{kind}", kind == "weight", part, parts=3)
            for part, name in enumerate("qkv")
            for kind in kinds
        ),
        *(
            Weight(f"{ours}{a}.{kind}", f"{theirs}{b}.{kind}", kind == "weight")
            for a, b in projections
            for kind in kinds
        ),
        *(Weight(f"{ours}{a}.{kind}", f"{theirs}{b}.{kind}") for a, b in norms for kind in kinds),
        *(Weight(f"head.norm.{kind}", f"transformer.ln_f.{kind}") for kind in kinds),
        Weight("head.weight", "lm_head.weight"),
    )


# Older checkpoints store the causal mask of every layer.
WEIGHTS = WeightTable(weights(), prefix="transformer.", ignored=("*.attn.bias", "*.attn.masked_bias"))
