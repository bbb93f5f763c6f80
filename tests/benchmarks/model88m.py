"""The 88M-parameter Llama of the benchmarks: random weights in a Hugging Face directory, the same for everybody."""

from __future__ import annotations

import json
import pathlib

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "float32",
}


def make(directory: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes the model once; later calls find it. Weights are normal with deviation 0.02, norms are ones."""
    if (directory / "model.safetensors").exists():
        return directory
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (directory / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": False})
    )
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(CONFIG["vocab_size"])}, unk_token="t3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "t0",
                "eos_token": "t1",
                "pad_token": "t2",
                "unk_token": "t3",
            }
        )
    )
    rng = np.random.default_rng(seed)
    save_file({name: _array(rng, name, shape) for name, shape in shapes()}, str(directory / "model.safetensors"))
    return directory


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Hugging Face names and shapes, in a fixed order."""
    hidden, mlp, kv = (
        CONFIG["hidden_size"],
        CONFIG["intermediate_size"],
        CONFIG["num_key_value_heads"] * CONFIG["head_dim"],
    )
    rows = [("model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)), ("model.norm.weight", (hidden,))]
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        rows += [
            (prefix + "self_attn.q_proj.weight", (hidden, hidden)),
            (prefix + "self_attn.k_proj.weight", (kv, hidden)),
            (prefix + "self_attn.v_proj.weight", (kv, hidden)),
            (prefix + "self_attn.o_proj.weight", (hidden, hidden)),
            (prefix + "mlp.gate_proj.weight", (mlp, hidden)),
            (prefix + "mlp.up_proj.weight", (mlp, hidden)),
            (prefix + "mlp.down_proj.weight", (hidden, mlp)),
            (prefix + "input_layernorm.weight", (hidden,)),
            (prefix + "post_attention_layernorm.weight", (hidden,)),
        ]
    return [*rows, ("lm_head.weight", (CONFIG["vocab_size"], hidden))]


def _array(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return (0.02 * rng.standard_normal(shape)).astype(np.float32)
