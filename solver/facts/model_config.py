"""From a Hugging Face `config.json` to a `ModelSpec`: the only parser of model shapes in the house.

One function per family, in the files beside this one, reads the fields that family has, with transformers' defaults,
in the dialects of transformers 4 and 5. Whatever a config asks for and the models here do not do is refused with one
line that names the field, so that no checkpoint is ever served as something it is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from solver.facts.config_fields import Fields, UnsupportedModel, show
from solver.facts.learned_config import parse_gpt2, parse_opt
from solver.facts.model_spec import ModelSpec
from solver.facts.rotary_config import parse_llama, parse_mistral, parse_qwen2, parse_qwen3
from solver.facts.t5_config import parse_t5

__all__ = ["UnsupportedModel", "parse_config", "read_model_spec"]

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


FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[Fields], ModelSpec]]] = {
    "gpt2": (("GPT2LMHeadModel",), parse_gpt2),
    "opt": (("OPTForCausalLM",), parse_opt),
    "llama": (("LlamaForCausalLM",), parse_llama),
    "mistral": (("MistralForCausalLM",), parse_mistral),
    "qwen2": (("Qwen2ForCausalLM",), parse_qwen2),
    "qwen3": (("Qwen3ForCausalLM",), parse_qwen3),
    # The second is what transformers called it in its second year, when t5-11b was published.
    "t5": (("T5ForConditionalGeneration", "T5WithLMHeadModel"), parse_t5),
}
