"""Writes parity references: tiny random models with what transformers computes from them.

Run by a Python that has torch and transformers; nothing of this project is imported. Per case, a directory:

  config.json        as transformers reads it, some in the dialect of version 4
  model.safetensors  weights, rounded to float16 so that the files are small; computed with in float32
  golden.npz         prompts, logits, tokens and the tensors between sub-layers (see `reference`)

Usage:
  python tests/tools/make_golden.py --output=tests/exegpt_jax/golden          # the committed cases
  python tests/tools/make_golden.py --output=DIR --random=2 --seed=7          # two new configurations per family
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import golden_t5
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

STEPS = 64
PROMPT_TOKENS = (12, 7, 3)
# Relative distance of the two best scores below which either may be chosen, as `tests/exegpt_jax/parity.py` has it.
TIE = 1e-5
MOST_DRAWS = 20

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "t5": "T5ForConditionalGeneration",
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}

# Sizes that most cases share: 8 heads and 48 columns, so that 1, 2, 4 and 8 devices divide them; a vocabulary that none
# of them divides.
ROTARY = {
    "vocab_size": 109,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 96,
}
GPT2 = {"vocab_size": 109, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 8, "n_positions": 96}
OPT = {
    "vocab_size": 109,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 96,
    "word_embed_proj_dim": 32,
}

# name -> (model_type, config beyond the shared sizes, how the files are written)
CASES: dict[str, tuple[str, dict, dict]] = {
    "gpt2": ("gpt2", {}, {"bare": True}),
    "gpt2-untied-relu": ("gpt2", {"tie_word_embeddings": False, "activation_function": "relu", "n_layer": 3}, {}),
    "opt": ("opt", {}, {"bare": True}),
    "opt-gelu-nobias-untied": (
        "opt",
        {"activation_function": "gelu", "enable_bias": False, "tie_word_embeddings": False, "num_hidden_layers": 3},
        {},
    ),
    "llama": ("llama", {}, {"dialect": 4}),
    "llama-gqa-linear": (
        "llama",
        {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}},
        {"dialect": 4},
    ),
    "llama-gqa-tied-llama3": (
        "llama",
        {
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
        },
        {},
    ),
    "llama-mqa-biases-yarn": (
        "llama",
        {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 8,
            "rope_parameters": {**YARN, "rope_theta": 500.0},
        },
        {"dialect": 4},
    ),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}, {"dialect": 4}),
    "mistral-full-headdim": (
        "mistral",
        {"num_key_value_heads": 4, "sliding_window": None, "head_dim": 8, "num_hidden_layers": 3},
        {},
    ),
    "mistral-window-yarn": (
        "mistral",
        {"num_key_value_heads": 1, "sliding_window": 5, "rope_parameters": {**YARN, "rope_theta": 1000.0}},
        {},
    ),
    "qwen2-tied": (
        "qwen2",
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": False},
        {"dialect": 4},
    ),
    "qwen2-window-mixed": (
        "qwen2",
        {
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        },
        {},
    ),
    "qwen2-yarn": (
        "qwen2",
        {"num_key_value_heads": 1, "rope_parameters": {**YARN, "rope_theta": 1000.0}},
        {"dialect": 4},
    ),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}, {"dialect": 4}),
    "qwen3-window-mixed": (
        "qwen3",
        {
            "num_key_value_heads": 4,
            "head_dim": 4,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {},
    ),
    "qwen3-bias-linear": (
        "qwen3",
        {
            "num_key_value_heads": 8,
            "head_dim": 4,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
        },
        {},
    ),
    **golden_t5.CASES,
}


def random_cases(rng: np.random.Generator, count: int) -> dict[str, tuple[str, dict, dict]]:
    """New configurations of every family: sizes, groups, biases, ties, ropes and windows drawn anew."""

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    cases = {}
    for family in ARCHITECTURES:
        for number in range(count):
            hidden, layers, tied = pick(32, 48, 64), pick(2, 3, 4), pick(True, False)
            style = {"dialect": pick(4, 5), "bare": pick(True, False)}
            if family == "gpt2":
                config = {"n_embd": hidden, "n_layer": layers, "activation_function": pick("gelu_new", "gelu", "relu")}
            elif family == "opt":
                config = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_hidden_layers": layers}
                config |= {"activation_function": pick("relu", "gelu"), "enable_bias": pick(True, False)}
            else:
                rope = pick(
                    {"rope_type": "default"}, {"rope_type": "linear", "factor": float(pick(2, 3))}, LLAMA3, YARN
                )
                config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_key_value_heads": pick(1, 2, 4, 8)}
                config |= {"intermediate_size": pick(48, 64, 96), "rope_parameters": {**rope, "rope_theta": 1000.0}}
                config |= {"head_dim": pick(4, 8, 12)} if family != "qwen2" else {}
            if family in ("llama", "qwen3"):
                config |= {"attention_bias": pick(True, False)}
            if family == "mistral":
                config |= {"sliding_window": pick(None, 4, 11)}
            if family in ("qwen2", "qwen3"):
                window = {"use_sliding_window": True, "sliding_window": pick(4, 11), "max_window_layers": pick(0, 1)}
                config |= pick({"use_sliding_window": False}, window)
            config |= {"vocab_size": int(rng.integers(60, 140)), "tie_word_embeddings": tied}
            if family == "t5":
                config = golden_t5.random_config(pick, config["vocab_size"])
            cases[f"{family}-{number}"] = (family, config, style)
    return cases


def write_config(directory: Path, family: str, changes: dict, dialect: int) -> None:
    """config.json as transformers 5 writes it, or as transformers 4 did."""
    shared = {"gpt2": GPT2, "opt": OPT, "t5": golden_t5.SIZES}.get(family, ROTARY)
    values = {"model_type": family, "architectures": [ARCHITECTURES[family]], "dtype": "float16", **shared, **changes}
    values |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(**values).to_dict() | {"architectures": [ARCHITECTURES[family]]}
    if family == "t5":
        config = golden_t5.in_dialect(config, changes, dialect)
    if dialect == 4:
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters", None)
        if rope is not None:
            config["rope_theta"] = rope.pop("rope_theta")
            config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["dtype" if dialect == 5 else "torch_dtype"] = "float16"
    directory.joinpath("config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights wide enough that the best two logits lie well apart, rounded to float16."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif parameter.ndim == 1:
            value = 1.0 + 0.2 * noise
        elif any(part in name for part in ("embed", "wte", "wpe", "shared")):
            # A tied head scores the input token highest where embeddings are large: every output would repeat it.
            value = noise * (0.2 if golden_t5.is_tied(model.config) else 1.0)
        else:
            inputs = parameter.shape[0] if "c_" in name else parameter.shape[1]
            value = noise * 1.5 * inputs**-0.5
        parameter.data.copy_(value.half().float())


def save_weights(directory: Path, model: torch.nn.Module, family: str, bare: bool) -> None:
    """model.safetensors; `bare` leaves the prefix out and adds what old checkpoints carry beside weights."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    if golden_t5.is_tied(model.config):
        tensors.pop("lm_head.weight")
    if family == "t5":
        tensors = golden_t5.stored(tensors, bare)
    elif bare:
        prefix = "transformer." if family == "gpt2" else "model."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        if family == "gpt2":
            length = model.config.n_positions
            tensors["h.0.attn.bias"] = torch.ones(1, 1, length, length, dtype=torch.uint8).tril()
            tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def sub_layers(model: torch.nn.Module, family: str, prompt: torch.Tensor) -> dict[str, np.ndarray]:
    """Tensors between sub-layers for one prompt, each [tokens, hidden]: see the keys."""
    found: dict[str, np.ndarray] = {}
    body = model.transformer if family == "gpt2" else model.model.decoder if family == "opt" else model.model
    layers = body.h if family == "gpt2" else body.layers

    def keep(key: str):
        def hook(module, args, output):
            value = output[0] if isinstance(output, tuple) else output
            found[key] = value.detach().reshape(-1, value.shape[-1]).numpy().copy()

        return hook

    def keep_input(module, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        found["embedding"] = value.detach()[0].numpy().copy()

    handles = [layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    for index, layer in enumerate(layers):
        attention = layer.attn if family == "gpt2" else layer.self_attn
        mlp = layer.fc2 if family == "opt" else layer.mlp
        for key, module in (("attention", attention), ("mlp", mlp), ("block", layer)):
            handles.append(module.register_forward_hook(keep(f"{key}.{index}")))
    model(prompt)
    for handle in handles:
        handle.remove()
    return found


def without_ties(model: torch.nn.Module, family: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A reference whose every request can be compared to its end: prompts that lead to a tie are drawn again."""
    for draw in range(MOST_DRAWS):
        arrays = reference(model, family, rng)
        if arrays["margins"].min() >= TIE:
            if draw:
                print(f"drawn again {draw} times: a request of the reference tied")
            return arrays
    sys.exit(f"make_golden: {MOST_DRAWS} draws of prompts all led to ties; the model's scores are degenerate")


def reference(model: torch.nn.Module, family: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What a case is compared with.

    prompts int32 [3, 12] zero-padded, lengths [3]; logits float32 [3, 12, vocab]; tokens (alone) and batched_tokens
    int32 [3, steps]; margins float32 [3, steps]: (best - second) / |best| of the scores behind each of `tokens`;
    embedding, attention.N, mlp.N, block.N float32 [12, hidden] of the first prompt.
    """
    if family == "t5":
        return golden_t5.reference(model, rng, PROMPT_TOKENS, STEPS)
    vocab = model.config.vocab_size
    rows, longest = len(PROMPT_TOKENS), max(PROMPT_TOKENS)
    prompts = np.zeros((rows, longest), np.int32)
    logits = np.zeros((rows, longest, vocab), np.float32)
    tokens = np.zeros((rows, STEPS), np.int32)
    margins = np.zeros((rows, STEPS), np.float32)
    left = torch.zeros(rows, longest, dtype=torch.long)
    mask = torch.zeros(rows, longest, dtype=torch.long)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=STEPS, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    for row, length in enumerate(PROMPT_TOKENS):
        prompts[row, :length] = rng.integers(0, vocab, length)
        prompt = torch.from_numpy(prompts[row : row + 1, :length].astype(np.int64))
        left[row, longest - length :], mask[row, longest - length :] = prompt[0], 1
        logits[row, :length] = model(prompt).logits[0].numpy()
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
        tokens[row] = alone.sequences[0, length:].numpy()
        best = torch.stack(alone.logits)[:, 0].topk(2).values.numpy()
        margins[row] = (best[:, 0] - best[:, 1]) / np.abs(best[:, 0])
    batched = model.generate(left, attention_mask=mask, generation_config=greedy).sequences[:, longest:].numpy()
    first = torch.from_numpy(prompts[:1, : PROMPT_TOKENS[0]].astype(np.int64))
    return {
        "prompts": prompts,
        "lengths": np.array(PROMPT_TOKENS, np.int32),
        "logits": logits,
        "tokens": tokens,
        "batched_tokens": batched.astype(np.int32),
        "margins": margins,
        **sub_layers(model, family, first),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write parity references from transformers.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--random", type=int, default=0, help="new configurations per family, instead of the fixed ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", default="", help="only cases of this one")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rng = np.random.default_rng(options.seed)
    cases = random_cases(rng, options.random) if options.random else CASES
    for number, (name, (family, changes, style)) in enumerate(cases.items()):
        if options.family not in ("", family):
            continue
        directory = options.output / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_config(directory, family, changes, style.get("dialect", 5))
        config = AutoConfig.from_pretrained(directory)
        config.dtype = torch.float32
        if family == "t5":
            model = golden_t5.make_model(config)
        else:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomise(model, torch.Generator().manual_seed(options.seed * 1000 + number))
        save_weights(directory, model, family, style.get("bare", False))
        arrays = (without_ties if options.random else reference)(model, family, rng)
        np.savez_compressed(directory / "golden.npz", **arrays)
        same = float((arrays["tokens"] == arrays["batched_tokens"]).mean())
        distinct = len(np.unique(arrays["tokens"]))
        least = arrays["margins"].min()
        print(f"{name}: {distinct} distinct tokens, least margin {least:.1e}, batched {same:.0%} the same")


if __name__ == "__main__":
    main()
