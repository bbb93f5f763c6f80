"""Trains the embedded model, a Llama of 0.8M parameters that writes numbers in words, into a Hugging Face directory.

    .venv/bin/python tests/tools/train_numbers.py --output=configs/demo/numbers

Seeded; 22 minutes on 2 busy CPU cores. The forward below is the training twin of `exegpt_jax.models`: the same
mathematics over whole sequences, kept apart so that a parity test between the two means something. Sequences are
left-aligned, `<s> digits -> words </s>`, and the loss counts the answer alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from exegpt_jax.testing import numbers_task as task

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPACE = "\u2581"
TOKENS = 26  # <s>, 9 digits, ->, 14 words, </s>
ANSWER_TOKENS = 15
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "use_cache": True,
}


def make_tokenizer() -> Tokenizer:
    """Digits one by one, words with the space before them, so that text survives encoding and decoding unchanged."""
    pieces = [PAD, BOS, EOS, UNK, *"0123456789", SPACE + task.ARROW, *(SPACE + word for word in task.WORDS)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPACE, "merged_with_next"), pre_tokenizers.Split(Regex("[0-9]"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in (PAD, BOS, EOS, UNK)])
    return tokenizer


def init(rng: np.random.Generator, vocab: int) -> dict[str, np.ndarray]:
    """Parameters under Hugging Face names, linear weights [out, in]."""
    hidden, mlp, layers = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_hidden_layers"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rng.normal(0, 0.02 * scale, shape).astype(np.float32)

    params = {"model.embed_tokens.weight": normal(vocab, hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    params["lm_head.weight"] = normal(vocab, hidden)
    for i in range(layers):
        at = f"model.layers.{i}."
        params[at + "input_layernorm.weight"] = np.ones(hidden, np.float32)
        params[at + "post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
        params[at + "self_attn.q_proj.weight"] = normal(hidden, hidden)
        params[at + "self_attn.k_proj.weight"] = normal(kv, hidden)
        params[at + "self_attn.v_proj.weight"] = normal(kv, hidden)
        params[at + "self_attn.o_proj.weight"] = normal(hidden, hidden, scale=(2 * layers) ** -0.5)
        params[at + "mlp.gate_proj.weight"] = normal(mlp, hidden)
        params[at + "mlp.up_proj.weight"] = normal(mlp, hidden)
        params[at + "mlp.down_proj.weight"] = normal(hidden, mlp, scale=(2 * layers) ** -0.5)
    return params


def forward(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Logits [rows, tokens, vocab] of left-aligned sequences [rows, tokens]."""
    rows, length = tokens.shape
    heads, kv_heads, head_dim = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    frequencies = CONFIG["rope_theta"] ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = jnp.tile(jnp.arange(length)[:, None] * frequencies, 2)[:, None, :]
    mask = jnp.tril(jnp.ones((length, length), bool))

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + CONFIG["rms_norm_eps"]) * weight

    def rope(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, -1)
        return x * jnp.cos(angles) + jnp.concatenate([-second, first], -1) * jnp.sin(angles)

    x = params["model.embed_tokens.weight"][tokens]
    for i in range(CONFIG["num_hidden_layers"]):
        w = {name.split(f"layers.{i}.")[1]: value for name, value in params.items() if f"layers.{i}." in name}
        h = norm(x, w["input_layernorm.weight"])
        q = rope((h @ w["self_attn.q_proj.weight"].T).reshape(rows, length, heads, head_dim))
        k = rope((h @ w["self_attn.k_proj.weight"].T).reshape(rows, length, kv_heads, head_dim))
        v = (h @ w["self_attn.v_proj.weight"].T).reshape(rows, length, kv_heads, head_dim)
        k, v = (jnp.repeat(each, heads // kv_heads, axis=2) for each in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
        x += jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(rows, length, -1) @ w["self_attn.o_proj.weight"].T
        h = norm(x, w["post_attention_layernorm.weight"])
        gated = jax.nn.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        x += gated @ w["mlp.down_proj.weight"].T
    return norm(x, params["model.norm.weight"]) @ params["lm_head.weight"].T


def batches(tokenizer: Tokenizer, rows: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens int32 [rows, TOKENS] and a mask of the answer's tokens, end of sequence included."""
    rng = random.Random(seed)
    ids = tokenizer.get_vocab()
    spoken = {word: ids[SPACE + word] for word in task.WORDS}
    while True:
        tokens, answer = np.zeros((rows, TOKENS), np.int32), np.zeros((rows, TOKENS), np.float32)
        for row in range(rows):
            number = task.draw(rng, 1, task.MAX_DIGITS, unseen=False)
            asked = [1, *(ids[digit] for digit in str(number)), ids[SPACE + task.ARROW]]
            line = [*asked, *(spoken[word] for word in task.words(number).split()), 2]
            tokens[row, : len(line)] = line
            answer[row, len(asked) : len(line)] = 1
        yield tokens, answer


def train(tokenizer: Tokenizer, steps: int, rows: int, learning_rate: float, seed: int) -> dict[str, jax.Array]:
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(200, steps // 10), steps, learning_rate / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def loss(params: dict[str, jax.Array], tokens: jax.Array, answer: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(forward(params, tokens[:, :-1]), tokens[:, 1:])
        return (losses * answer[:, 1:]).sum() / answer[:, 1:].sum()

    @jax.jit
    def step(params, state, tokens, answer):
        value, gradients = jax.value_and_grad(loss)(params, tokens, answer)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = {k: jnp.asarray(v) for k, v in init(np.random.default_rng(seed), tokenizer.get_vocab_size()).items()}
    state = optimizer.init(params)
    started = time.monotonic()
    for number, (tokens, answer) in zip(range(1, steps + 1), batches(tokenizer, rows, seed), strict=False):
        params, state, value = step(params, state, tokens, answer)
        if number % 250 == 0 or number == 10:
            right = exact(tokenizer, params, 200)
            print(
                f"step {number:5d}  loss {value:.5f}  exact {right:.3f}  {time.monotonic() - started:.0f} s", flush=True
            )
    return params


def exact(tokenizer: Tokenizer, params: dict[str, jax.Array], count: int) -> float:
    """Share of held-out numbers whose whole greedy answer, end included, is right."""
    rng = random.Random(1)
    numbers = [task.draw(rng, 3, task.MAX_DIGITS, unseen=True) for _ in range(count)]
    asked = [tokenizer.encode(task.prompt(number)).ids for number in numbers]
    tokens = np.zeros((count, TOKENS), np.int32)
    for row, line in zip(tokens, asked, strict=True):
        row[: len(line)] = line
    lengths = np.array([len(line) for line in asked])
    scores = jax.jit(forward)
    for _ in range(ANSWER_TOKENS):
        inside = np.minimum(lengths, TOKENS - 1)
        picked = np.asarray(scores(params, tokens))[np.arange(count), inside - 1].argmax(-1)
        ended = tokens[np.arange(count), lengths - 1] == 2
        tokens[np.arange(count), inside] = np.where(ended, tokens[np.arange(count), inside], picked)
        lengths = np.where(ended, lengths, inside + 1)
    right = 0
    for row, line, end, number in zip(tokens, asked, lengths, numbers, strict=True):
        right += row[end - 1] == 2 and tokenizer.decode(row[len(line) : end].tolist()) == task.words(number)
    return right / count


def ship(directory: pathlib.Path, tokenizer: Tokenizer, params: dict[str, jax.Array]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    specials = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    files = {
        "config.json": {**CONFIG, "vocab_size": tokenizer.get_vocab_size()},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False},
        "special_tokens_map.json": specials,
        "tokenizer_config.json": {
            **specials,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"))
    arrays = {name: np.asarray(value) for name, value in params.items()}
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    params = train(tokenizer, options.steps, options.rows, options.learning_rate, options.seed)
    ship(options.output, tokenizer, params)
    print(f"exact on 2000 held-out numbers: {exact(tokenizer, params, 2000):.4f}")


if __name__ == "__main__":
    main()
