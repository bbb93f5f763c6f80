"""From a Hugging Face `config.json` to a `ModelSpec`: the only parser of model shapes in the house.

One function per family reads the fields that family has, with transformers' defaults, in the dialects of transformers
4 and 5. Whatever a config asks for and the models here do not do is refused with one line that names the field, so
that no checkpoint is ever served as something it is not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from solver.facts.config_fields import (
    MAX_LAYERS,
    MAX_SIZE,
    Fields,
    UnsupportedModel,
    activation,
    checkpoint_dtype,
    show,
)
from solver.facts.model_spec import Family, LayerKind, LayerRun, ModelSpec
from solver.facts.rope_config import parse_rope
from solver.facts.t5_config import parse_t5

__all__ = ["UnsupportedModel", "parse_config", "read_model_spec"]

MAX_POSITIONS = 100 * MAX_SIZE

# Fields by which configs of other models, or extensions of these, change the arithmetic.
UNSUPPORTED_FIELDS = (
    "quantization_config", "auto_map", "add_cross_attention", "text_config", "vision_config",
    "audio_config", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok",
    "moe_intermediate_size", "shared_expert_intermediate_size", "attn_logit_softcapping", "final_logit_softcapping",
    "logit_softcapping",
    "query_pre_attn_scalar", "attention_multiplier", "attention_chunk_size", "attention_sinks", "clip_qkv", "alibi",
    "dual_chunk_attention_config", "kv_lora_rank", "q_lora_rank", "no_rope_layers", "use_mrope", "use_qk_norm",
    "qk_layernorm", "parallel_attn", "use_parallel_residual", "rope_interleaved", "num_nextn_predict_layers",
    "sliding_window_pattern", "original_rope_theta",
)  # fmt: skip
UNSUPPORTED_FACTORS = ("logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling")
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")
WINDOW_FIELDS = ("sliding_window", "use_sliding_window", "layer_types")


def read_model_spec(directory: Path) -> ModelSpec:
    """Reads `config.json` of a model directory (or a config file itself, such as a preset).

    Raises:
      UnsupportedModel: one line: the file cannot be read, or asks for what is not done here.
    """
    path = directory if directory.is_file() else directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnsupportedModel(
            f"model: {path}: {error.strerror or error}; give a model directory that holds config.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path}: not readable as JSON ({show(str(error))})") from None
    return parse_config(config)


def parse_config(config: Mapping[str, object]) -> ModelSpec:
    """Builds the spec of a parsed `config.json`. Raises UnsupportedModel with one line that names the field."""
    if not isinstance(config, Mapping):
        raise UnsupportedModel(f"config.json: holds {show(config)}, not an object")
    fields = Fields(config)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise fields.fail("model_type", model_type, f"is not supported; supported: {', '.join(FAMILIES)}")
    architectures, parse = FAMILIES[model_type]
    named = fields.get("architectures")
    if named is not None and named not in [[one] for one in architectures]:
        raise fields.fail("architectures", named, f"is not supported; for {model_type} it is ['{architectures[0]}']")
    fields.refuse(UNSUPPORTED_FIELDS)
    if parse is not parse_t5:
        fields.refuse(("is_encoder_decoder",))
    fields.refuse(UNSUPPORTED_FACTORS, neutral=(1, 1.0))
    return parse(fields)


def _gpt2(fields: Fields) -> ModelSpec:
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


def _opt(fields: Fields) -> ModelSpec:
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


def _llama(fields: Fields) -> ModelSpec:
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


def _mistral(fields: Fields) -> ModelSpec:
    fields.refuse(("attention_bias", "mlp_bias"))
    # An absent window is 4096 in transformers; an explicit null is none.
    given = "sliding_window" in fields.values
    window = fields.integer("sliding_window", default=0 if given else 4096) or None
    _only_layer_type(fields, "full_attention" if window is None else "sliding_attention")
    return _rotary(
        fields, family="mistral", vocab=32000, mlp=14336, kv_heads=8, positions=131072, windows=lambda layer: window
    )


def _qwen2(fields: Fields) -> ModelSpec:
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


def _qwen3(fields: Fields) -> ModelSpec:
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


FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[Fields], ModelSpec]]] = {
    "gpt2": (("GPT2LMHeadModel",), _gpt2),
    "opt": (("OPTForCausalLM",), _opt),
    "llama": (("LlamaForCausalLM",), _llama),
    "mistral": (("MistralForCausalLM",), _mistral),
    "qwen2": (("Qwen2ForCausalLM",), _qwen2),
    "qwen3": (("Qwen3ForCausalLM",), _qwen3),
    # The second is what transformers called it in its second year, when t5-11b was published.
    "t5": (("T5ForConditionalGeneration", "T5WithLMHeadModel"), parse_t5),
}
