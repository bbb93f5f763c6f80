"""From the `config.json` of Llama, Mistral, Qwen2 and Qwen3 to a `ModelSpec`: rotary positions, heads in groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from solver.facts.config_fields import (
    MAX_LAYERS,
    MAX_POSITIONS,
    WINDOW_FIELDS,
    Fields,
    activation,
    checkpoint_dtype,
)
from solver.facts.model_spec import Family, LayerKind, LayerRun, ModelSpec
from solver.facts.rope_config import parse_rope


def parse_llama(fields: Fields) -> ModelSpec:
    fields.refuse(WINDOW_FIELDS[:2])
    _only_layer_type(fields, "full_attention")
    bias = fields.flag("attention_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return _rotary(
        fields,
        family="llama",
        vocab=32000,
        mlp=11008,
        positions=2048,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=mlp_bias,
    )


def parse_mistral(fields: Fields) -> ModelSpec:
    fields.refuse(("attention_bias", "mlp_bias"))
    # An absent window is 4096 in transformers; an explicit null is none.
    given = "sliding_window" in fields.values
    window = fields.integer("sliding_window", default=0 if given else 4096) or None
    _only_layer_type(fields, "full_attention" if window is None else "sliding_attention")
    return _rotary(
        fields, family="mistral", vocab=32000, mlp=14336, kv_heads=8, positions=131072, windows=lambda layer: window
    )


def parse_qwen2(fields: Fields) -> ModelSpec:
    fields.refuse(("mlp_bias",))
    if not fields.flag("attention_bias", True):
        raise fields.fail(
            "attention_bias", False, "is not supported; qwen2 projections of query, key and value carry a bias"
        )
    return _rotary(
        fields,
        family="qwen2",
        vocab=151936,
        mlp=22016,
        kv_heads=32,
        positions=32768,
        qkv_bias=True,
        windows=_qwen_windows(fields),
    )


def parse_qwen3(fields: Fields) -> ModelSpec:
    fields.refuse(("mlp_bias",))
    bias = fields.flag("attention_bias", False)
    return _rotary(
        fields,
        family="qwen3",
        vocab=151936,
        mlp=22016,
        kv_heads=32,
        positions=32768,
        head_dim=128,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        windows=_qwen_windows(fields),
    )


def _rotary(
    fields: Fields,
    *,
    family: Family,
    vocab: int,
    mlp: int,
    positions: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows: Callable[[int], int | None] = lambda layer: None,
) -> ModelSpec:
    """What Llama, Mistral and Qwen share: rotary positions, RMS norms, a gated feed-forward layer, grouped heads.

    The arguments after `family` are transformers' defaults and the family's own traits.
    """
    hidden = fields.integer("hidden_size", default=4096)
    heads = fields.integer("num_attention_heads", default=32)
    kv_heads = fields.integer(
        "num_key_value_heads", default=heads if "num_key_value_heads" in fields.values or kv_heads is None else kv_heads
    )
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", kv_heads, f"does not divide num_attention_heads={heads}")
    if fields.get("head_dim") is None and head_dim is None and hidden % heads:
        raise fields.fail("num_attention_heads", heads, f"does not divide hidden_size={hidden}; give head_dim")
    head_dim = fields.integer("head_dim", default=head_dim or hidden // heads)
    if head_dim % 2:
        raise fields.fail("head_dim", head_dim, "is odd; rotary positions need an even width")
    max_positions = fields.integer("max_position_embeddings", default=positions, high=MAX_POSITIONS)
    layers = fields.integer("num_hidden_layers", default=32, high=MAX_LAYERS)
    kinds = itertools.groupby(LayerKind(window_tokens=windows(layer)) for layer in range(layers))
    return ModelSpec(
        family=family,
        vocab_size=fields.integer("vocab_size", default=vocab),
        hidden_size=hidden,
        mlp_size=fields.integer("intermediate_size", default=mlp),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(LayerRun(kind, len(list(run))) for kind, run in kinds),
        max_positions=max_positions,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        activation=activation(fields, "hidden_act", "silu"),
        gated_mlp=True,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=parse_rope(fields, max_positions),
        position_offset=0,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=checkpoint_dtype(fields),
    )


def _qwen_windows(fields: Fields) -> Callable[[int], int | None]:
    """Layer -> window: `layer_types` where given, else the layers from `max_window_layers` on, if windows are used."""
    used = fields.flag("use_sliding_window", False)
    window = fields.integer("sliding_window", default=0 if "sliding_window" in fields.values else 4096) if used else 0
    types = _layer_types(fields)
    if types is None:
        first = fields.integer("max_window_layers", default=28, low=0)
        return lambda layer: window if window and layer >= first else None
    if "sliding_attention" in types and not window:
        raise fields.fail(
            "layer_types", types, "names sliding_attention, but use_sliding_window and sliding_window give no window"
        )
    return lambda layer: window if types[layer] == "sliding_attention" else None


def _layer_types(fields: Fields) -> Sequence[str] | None:
    types = fields.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list):
        raise fields.fail("layer_types", types, "is no list")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.fail("layer_types", kind, "is not supported; supported: full_attention, sliding_attention")
    count = fields.integer("num_hidden_layers", default=32, high=MAX_LAYERS)
    if len(types) != count:
        raise fields.fail("layer_types", types, f"lists {len(types)} layers, but num_hidden_layers={count}")
    return types


def _only_layer_type(fields: Fields, expected: str) -> None:
    for kind in _layer_types(fields) or ():
        if kind != expected:
            raise fields.fail("layer_types", kind, f"is not supported here; all layers are {expected}")
