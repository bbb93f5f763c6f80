"""The T5 part of `make_golden.py`: configurations, weights and references of encoder-decoder models.

Run by a Python that has torch and transformers; nothing of this project is imported.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.t5.modeling_t5 import T5Attention

# Shared by the cases, as in `make_golden.py`: 1, 2, 4 and 8 devices divide heads and columns, none the vocabulary.
SIZES = {"vocab_size": 109, "d_model": 32, "d_kv": 4, "d_ff": 48, "num_layers": 2, "num_heads": 8}
SIZES |= {"decoder_start_token_id": 0, "is_encoder_decoder": True}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

# name -> (model_type, config beyond the shared sizes, how the files are written)
CASES: dict[str, tuple[str, dict, dict]] = {
    "t5": ("t5", {}, {"bare": True, "dialect": 4}),
    "t5-v1.1": ("t5", {**GATED, "d_kv": 8, "num_layers": 3, "num_decoder_layers": 2}, {"dialect": 4}),
    "t5-distances": (
        "t5",
        {
            **GATED,
            "num_decoder_layers": 1,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
            "decoder_start_token_id": 5,
        },
        {},
    ),
}
# Every distance up to here has its bucket in the reference, for both stacks.
DISTANCES = 600


def random_config(pick, vocab_size: int) -> dict:
    """Sizes, depths, feed-forward layers, heads and distances drawn anew."""
    config = {"d_model": pick(32, 48, 64), "d_kv": pick(4, 8, 12), "d_ff": pick(48, 64, 96), "vocab_size": vocab_size}
    # transformers 5.23 gives a decoder's cache as many layers as the encoder has, so no decoder here has more.
    config |= pick(*({"num_layers": e, "num_decoder_layers": d} for e, d in ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3))))
    config |= {"relative_attention_num_buckets": pick(8, 16, 32), "relative_attention_max_distance": pick(20, 40, 128)}
    config |= pick({"feed_forward_proj": "relu"}, {"feed_forward_proj": "gated-gelu"})
    return config | {"tie_word_embeddings": pick(True, False), "decoder_start_token_id": pick(0, 3)}


def in_dialect(config: dict, changes: dict, dialect: int) -> dict:
    """transformers 5 always says that weights are tied, and whether the head scales; 4 said whether they are tied."""
    if dialect == 4:
        config.pop("scale_decoder_outputs")
        config["tie_word_embeddings"] = changes.get("tie_word_embeddings", True)
    return config


def is_tied(config) -> bool:
    return getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)


def make_model(config) -> torch.nn.Module:
    """A model whose head has weights of its own unless the configuration ties them."""
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").float().eval()
    if not is_tied(config):
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def stored(tensors: dict[str, torch.Tensor], bare: bool) -> dict[str, torch.Tensor]:
    """What is written: old checkpoints (`bare`) carry copies of the embedding and a table that nothing reads."""
    if bare:
        unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return tensors | {unread: torch.ones(32, 8).half()}
    return {name: value for name, value in tensors.items() if not name.endswith("embed_tokens.weight")}


def sub_layers(model: torch.nn.Module, prompt: torch.Tensor, output: torch.Tensor) -> dict[str, np.ndarray]:
    """Tensors between sub-layers for one prompt and one output, each [tokens, hidden].

    embedding, encoded: what the first encoder layer gets and what the encoder gives; output_embedding: what the first
    decoder layer gets; attention.N, cross.N, mlp.N, block.N: layers counted from the encoder's on into the decoder.
    """
    found: dict[str, np.ndarray] = {}

    def keep(key: str):
        def hook(module, args, output):
            value = output[0] if isinstance(output, tuple) else output
            found[key] = value.detach().reshape(-1, value.shape[-1]).numpy().copy()

        return hook

    handles = []
    for number, layer in enumerate([*model.encoder.block, *model.decoder.block]):
        parts = {"attention": layer.layer[0].SelfAttention, "mlp": layer.layer[-1].DenseReluDense, "block": layer}
        if number >= len(model.encoder.block):
            parts["cross"] = layer.layer[1].EncDecAttention
        handles += [module.register_forward_hook(keep(f"{key}.{number}")) for key, module in parts.items()]
    handles.append(model.encoder.final_layer_norm.register_forward_hook(keep("encoded")))
    model(input_ids=prompt, decoder_input_ids=output)
    for handle in handles:
        handle.remove()
    found["embedding"] = model.shared(prompt)[0].numpy()
    found["output_embedding"] = model.shared(output)[0].numpy()
    return found


def reference(
    model: torch.nn.Module, rng: np.random.Generator, prompt_tokens: tuple[int, ...], steps: int
) -> dict[str, np.ndarray]:
    """As in `make_golden.py`, but for logits float32 [3, 12, vocab], which are those behind the first 12 output tokens.

    Besides: output int32 [12], what the decoder read for the tensors between sub-layers (see `sub_layers`), and
    prompt_buckets, output_buckets int32: of distances -DISTANCES to DISTANCES, of key minus query.
    """
    rows, longest = len(prompt_tokens), max(prompt_tokens)
    start, vocab = model.config.decoder_start_token_id, model.config.vocab_size
    prompts, mask = np.zeros((rows, longest), np.int32), np.zeros((rows, longest), np.int64)
    logits = np.zeros((rows, longest, vocab), np.float32)
    tokens, margins = np.zeros((rows, steps), np.int32), np.zeros((rows, steps), np.float32)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=steps, pad_token_id=0, decoder_start_token_id=start,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    for row, length in enumerate(prompt_tokens):
        prompts[row, :length] = rng.integers(0, vocab, length)
        mask[row, :length] = 1
        prompt = torch.from_numpy(prompts[row : row + 1, :length].astype(np.int64))
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
        tokens[row] = alone.sequences[0, 1:].numpy()
        scores = torch.stack(alone.logits)[:, 0]
        logits[row] = scores[:longest].numpy()
        best = scores.topk(2).values.numpy()
        margins[row] = (best[:, 0] - best[:, 1]) / np.abs(best[:, 0])
    together = model.generate(
        torch.from_numpy(prompts.astype(np.int64)), attention_mask=torch.from_numpy(mask), generation_config=greedy
    )
    output = np.concatenate([[start], tokens[0, : longest - 1]]).astype(np.int32)
    ahead = torch.arange(-DISTANCES, DISTANCES + 1)
    relative = (model.config.relative_attention_num_buckets, model.config.relative_attention_max_distance)
    bucket = T5Attention._relative_position_bucket
    first = torch.from_numpy(prompts[:1, : prompt_tokens[0]].astype(np.int64))
    return {
        "prompts": prompts,
        "lengths": np.array(prompt_tokens, np.int32),
        "logits": logits,
        "tokens": tokens,
        "batched_tokens": together.sequences[:, 1:].numpy().astype(np.int32),
        "margins": margins,
        "output": output,
        "prompt_buckets": bucket(ahead, True, *relative).numpy().astype(np.int32),
        "output_buckets": bucket(ahead, False, *relative).numpy().astype(np.int32),
        **sub_layers(model, first, torch.from_numpy(output[None].astype(np.int64))),
    }
