"""config.json to ModelSpec: both dialects agree, presets have the right size, everything else is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.facts.model_config import UnsupportedModel, parse_config, read_model_spec
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec, Rope
from solver.facts.tensor_degree import check_tensor, tensor_degrees

PRESETS = Path(__file__).parents[2] / "configs" / "models"

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
LLAMA = {"model_type": "llama", **TINY}
MISTRAL = {"model_type": "mistral", **TINY}
QWEN2 = {"model_type": "qwen2", **TINY}
QWEN3 = {"model_type": "qwen3", **TINY}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 100}


def parameters(spec: ModelSpec) -> float:
    """Counted from the formulas of the architectures, apart from any code that serves them."""
    attention = spec.hidden_size * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    mlp = (3 if spec.gated_mlp else 2) * spec.hidden_size * spec.mlp_size
    embedding = spec.vocab_size * spec.hidden_size * (1 if spec.tied_embeddings else 2)
    positions = 0 if spec.rope or spec.relative else spec.max_positions * spec.hidden_size
    cross = sum(kind.name == "cross" for kind in spec.layer_kinds()) * attention
    return spec.num_layers * (attention + mlp) + cross + embedding + positions


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("opt-13b", 12.85),
        ("gpt3-39b", 39.1),
        ("gpt3-101b", 101.2),
        ("gpt3-175b", 174.6),
        ("gpt3-341b", 340.6),
        ("llama-2-7b", 6.74),
        ("llama-2-70b", 68.98),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
        ("t5-11b", 11.3),
    ],
)
def test_presets_have_their_published_size(name: str, billions: float) -> None:
    assert parameters(read_model_spec(PRESETS / f"{name}.json")) == pytest.approx(billions * 1e9, rel=0.01)


def test_every_preset_is_listed() -> None:
    for path in PRESETS.glob("*.json"):
        assert read_model_spec(path).num_layers > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5, "torch_dtype": "bfloat16"}, {"rope_parameters": {"rope_theta": 5e5}, "dtype": "bfloat16"}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16}},
        ),
        ({"rope_scaling": None}, {}),
        ({"torch_dtype": "float16"}, {"dtype": "torch.float16"}),
    ],
)
def test_both_dialects_agree(old: dict, new: dict) -> None:
    assert parse_config(LLAMA | old) == parse_config(LLAMA | new)


def test_defaults_are_those_of_transformers() -> None:
    llama = parse_config({"model_type": "llama"})
    assert (llama.hidden_size, llama.kv_heads, llama.head_dim, llama.rope) == (4096, 32, 128, Rope(10_000.0))
    assert parse_config({"model_type": "mistral"}).layers == (LayerRun(LayerKind(window_tokens=4096), 32),)
    assert parse_config({"model_type": "gpt2"}).mlp_size == 3072
    assert parse_config({"model_type": "opt"}).position_offset == 2
    assert parse_config(QWEN3).head_dim == 128
    assert parse_config({"model_type": "qwen2"}).qkv_bias


def test_layer_kinds() -> None:
    full, window = LayerKind(), LayerKind(window_tokens=8)
    sliding = {"use_sliding_window": True, "sliding_window": 8}
    assert parse_config(QWEN2 | sliding | {"max_window_layers": 2}).layers == (LayerRun(full, 2), LayerRun(window, 1))
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert parse_config(QWEN3 | sliding | {"layer_types": types}).layer_kinds() == (window, full, window)
    assert parse_config(QWEN2 | {"sliding_window": 8}).layers == (LayerRun(full, 3),)
    assert parse_config(MISTRAL | {"sliding_window": None}).layers == (LayerRun(full, 3),)


def test_yarn_attention_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert parse_config(LLAMA | {"rope_parameters": yarn}).rope.attention_factor == 0.0
    assert parse_config(LLAMA | {"rope_parameters": yarn | {"attention_factor": 1.5}}).rope.attention_factor == 1.5
    both = yarn | {"mscale": 1.0, "mscale_all_dim": 1.0}
    assert parse_config(LLAMA | {"rope_parameters": both}).rope.attention_factor == 1.0


REFUSED = [
    ({"model_type": "mixtral"}, "model_type"),
    ({}, "model_type"),
    ({"model_type": ["llama"]}, "model_type"),
    (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    (LLAMA | {"architectures": "LlamaForCausalLM"}, "architectures"),
    (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    (LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling.Custom"}}, "auto_map"),
    (LLAMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    (LLAMA | {"num_local_experts": 8}, "num_local_experts"),
    (LLAMA | {"residual_multiplier": 0.5}, "residual_multiplier"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.25}}, "rope_parameters.partial_rotary_factor"),
    (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
    (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type"),
    (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
    (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor"),
    (LLAMA | {"rope_scaling": [2.0]}, "rope_scaling"),
    (LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
    (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "rope_scaling.truncate"),
    (LLAMA | {"hidden_act": "relu2"}, "hidden_act"),
    (LLAMA | {"hidden_size": 4096.0}, "hidden_size"),
    (LLAMA | {"hidden_size": True}, "hidden_size"),
    (LLAMA | {"hidden_size": 30}, "num_attention_heads"),
    (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers"),
    (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    (LLAMA | {"vocab_size": -5}, "vocab_size"),
    (LLAMA | {"vocab_size": 10**12}, "vocab_size"),
    (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads"),
    (LLAMA | {"head_dim": 7}, "head_dim"),
    (LLAMA | {"rms_norm_eps": "small"}, "rms_norm_eps"),
    (LLAMA | {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    (LLAMA | {"rope_theta": 0}, "rope_theta"),
    (LLAMA | {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (LLAMA | {"torch_dtype": "float8_e4m3fn"}, "dtype"),
    (LLAMA | {"sliding_window": 16}, "sliding_window"),
    (LLAMA | {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "layer_types"),
    (MISTRAL | {"sliding_window": 0}, "sliding_window"),
    (MISTRAL | {"layer_types": ["full_attention"] * 3}, "layer_types"),
    (MISTRAL | {"attention_bias": True}, "attention_bias"),
    (QWEN2 | {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types"),
    (QWEN2 | {"dual_chunk_attention_config": {"chunk_size": 4}}, "dual_chunk_attention_config"),
    (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    (GPT2 | {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights"),
    (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    (GPT2 | {"n_head": 5}, "n_head"),
    (GPT2 | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    (OPT | {"do_layer_norm_before": False}, "do_layer_norm_before"),
    (OPT | {"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
    (OPT | {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
    (OPT | {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
    (LLAMA | {"is_encoder_decoder": True}, "is_encoder_decoder"),
    (T5 | {"is_encoder_decoder": False}, "is_encoder_decoder"),
    (T5 | {"is_decoder": True}, "is_decoder"),
    (T5 | {"architectures": ["T5EncoderModel"]}, "architectures"),
    (T5 | {"feed_forward_proj": "gated-swiglu"}, "feed_forward_proj"),
    (T5 | {"num_decoder_layers": 0}, "num_decoder_layers"),
    (T5 | {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
    (T5 | {"relative_attention_max_distance": 16}, "relative_attention_max_distance"),
    (T5 | {"decoder_start_token_id": 100}, "decoder_start_token_id"),
    (T5 | {"scale_decoder_outputs": "no"}, "scale_decoder_outputs"),
]


@pytest.mark.parametrize(("config", "field"), REFUSED, ids=[f"{field}-{i}" for i, (_, field) in enumerate(REFUSED)])
def test_refused_in_one_line_that_names_the_field(config: dict, field: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        parse_config(config)
    text = str(error.value)
    assert text.startswith(f"{field}: ")
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "{", "null", "[" * 100_000, '{"model_type": "llama", "hidden_size": NaN}', "\xff"]
)
def test_unreadable_files_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsupportedModel) as error:
        read_model_spec(tmp_path)
    assert "\n" not in str(error.value)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        read_model_spec(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {key for config, _ in REFUSED for key in config} | {"n_inner", "n_ctx", "ffn_dim", "enable_bias", "mlp_bias"}
)


@given(
    st.sampled_from([LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, OPT, T5]),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
)
def test_any_values_parse_or_are_refused(base: dict, changes: dict) -> None:
    """Whatever stands in a field: a spec whose parts fit together, or one line."""
    config = json.loads(json.dumps(base | changes))
    try:
        spec = parse_config(config)
    except UnsupportedModel as error:
        if len(str(error).splitlines()) != 1:
            pytest.fail(f"not one line: {error}")
        return
    assert spec.num_layers == len(spec.layer_kinds()) > 0
    assert spec.heads % spec.kv_heads == 0
    assert hash(spec) == hash(parse_config(config))


def test_t5() -> None:
    """Encoder layers first; the three models differ in the feed-forward layer and in the head, in either dialect."""
    first = parse_config(T5 | {"architectures": ["T5WithLMHeadModel"], "num_decoder_layers": 2})
    assert [(run.kind.name, run.count) for run in first.layers] == [("encoder", 3), ("cross", 2)]
    assert (first.encoder_layers, first.first_token, first.start_token) == (3, "decode", 0)
    assert [first.cached_layers(layers) for layers in ((0, 5), (0, 3), (2, 4), (3, 5))] == [2, 0, 1, 2]
    assert (first.activation, first.gated_mlp, first.tied_embeddings) == ("relu", False, True)
    assert first.head_scale == 32**-0.5
    flan = {"feed_forward_proj": "gated-gelu", "pad_token_id": 7}
    old = parse_config(T5 | flan | {"tie_word_embeddings": False})
    assert old == parse_config(T5 | flan | {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert (old.activation, old.gated_mlp, old.tied_embeddings) == ("gelu_tanh", True, False)
    assert (old.head_scale, old.start_token) == (1.0, 7)


def test_tensor_degrees() -> None:
    spec = parse_config(LLAMA)
    assert tensor_degrees(spec) == (1, 2, 4)
    check_tensor(spec, 4)
    with pytest.raises(
        ValueError, match="tensor: 8 does not divide the model's 4 attention heads; give one of 1, 2, 4"
    ):
        check_tensor(spec, 8)
    with pytest.raises(ValueError, match="feed-forward"):
        check_tensor(parse_config(LLAMA | {"intermediate_size": 50}), 4)
