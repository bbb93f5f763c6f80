"""T5, T5 v1.1 and Flan-T5: every layer named apart, since ours count on from the encoder into the decoder."""

from __future__ import annotations

from exegpt_jax.models.families.table import Weight, WeightTable
from solver.facts.model_spec import ModelSpec

_PROJECTIONS = (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
# Copies of the embedding, and a table that the first models stored though cross-attention has no distances.
_IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


def table(spec: ModelSpec) -> WeightTable:
    """The table of a model with so many layers in either stack."""
    encoders = spec.encoder_layers
    numbers = range(spec.num_layers)
    layers = [_layer(spec, n) if n < encoders else _layer(spec, n, n - encoders) for n in numbers]
    shared = [
        Weight("embed.tokens", "shared.weight"),
        Weight("encoder_norm.weight", "encoder.final_layer_norm.weight"),
        Weight("head.norm.weight", "decoder.final_layer_norm.weight"),
        Weight("head.weight", "lm_head.weight"),
    ]
    for stack in ("encoder", "decoder"):
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shared.append(Weight(f"{stack}_distances", name))
    return WeightTable((*shared, *(weight for layer in layers for weight in layer)), prefix="", ignored=_IGNORED)


def _layer(spec: ModelSpec, number: int, decoder: int | None = None) -> list[Weight]:
    """One layer, by our number; `decoder` is its number among the decoder's."""
    ours = f"blocks.{number}."
    theirs = f"encoder.block.{number}.layer." if decoder is None else f"decoder.block.{decoder}.layer."
    parts = [("attention", "0.SelfAttention")] + ([] if decoder is None else [("cross", "1.EncDecAttention")])
    found = [Weight(f"{ours}{a}.{p}.weight", f"{theirs}{b}.{q}.weight") for a, b in parts for p, q in _PROJECTIONS]
    last = len(parts)
    norms = [*(a for a, _ in parts), "mlp"]
    found += [Weight(f"{ours}{a}_norm.weight", f"{theirs}{i}.layer_norm.weight") for i, a in enumerate(norms)]
    plain, gated = (("up", "wi"),), (("gate", "wi_0"), ("up", "wi_1"))
    maps = (*(gated if spec.gated_mlp else plain), ("down", "wo"))
    return found + [Weight(f"{ours}mlp.{a}.weight", f"{theirs}{last}.DenseReluDense.{b}.weight") for a, b in maps]
