"""Model directories of every family, small enough to write a hundred times, with sizes that divide nothing evenly."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from exegpt_jax.models import families
from exegpt_jax.sharding.stage import Stage
from exegpt_jax.weights.checkpoint import SINGLE, expected_tensors, open_checkpoint
from exegpt_jax.weights.safetensors import FLOATS, write_safetensors
from solver.facts.model_config import parse_config
from solver.facts.model_spec import ModelSpec
from solver.facts.parameters import parameters
from solver.plan.schedule import StageSpec

_ROTARY = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 53,
    "max_position_embeddings": 64,
}
_OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 53,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
_GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 8, "vocab_size": 53, "n_positions": 64}
_T5 = {"model_type": "t5", "d_model": 24, "d_kv": 4, "d_ff": 40, "num_layers": 2, "num_heads": 8, "vocab_size": 53}

CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": _GPT2,
    "gpt2-untied": {**_GPT2, "tie_word_embeddings": False},
    "opt": _OPT,
    "opt-bare": {**_OPT, "enable_bias": False, "tie_word_embeddings": False},
    "llama": {**_ROTARY, "model_type": "llama"},
    "llama-tied": {**_ROTARY, "model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama-biases": {**_ROTARY, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {**_ROTARY, "model_type": "mistral", "sliding_window": 16},
    "qwen2": {**_ROTARY, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_ROTARY, "model_type": "qwen3", "num_key_value_heads": 4},
    "t5": _T5,
    "t5-v1.1": {**_T5, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def spec_of(name: str) -> ModelSpec:
    return parse_config(CONFIGS[name])


def stage_spec(spec: ModelSpec, tensor: int = 1, layers: tuple[int, int] | None = None) -> StageSpec:
    devices = tuple(device.id for device in jax.devices()[:tensor])
    return StageSpec("both", layers or (0, spec.num_layers), devices, tensor)


def random_tensors(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint's tensors under its own names, float32."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in expected_tensors(spec).items()}


def write_model(name: str, directory: Path, dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    """A directory with config.json, random weights and a few tokenizer files; returns the tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIGS[name], "torch_dtype": dtype}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "generation_config.json").write_text("{}")
    tensors = {key: tensor.astype(jnp.dtype(dtype)) for key, tensor in random_tensors(spec_of(name), seed).items()}
    write_tensors(directory / SINGLE, tensors)
    return tensors


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {stored: name for name, stored in FLOATS.items()}
    shapes = {name: (names[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(path, shapes, tensors.__getitem__)


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of one or two dimensions; those with more hold no weights (causal masks)."""
    with open_checkpoint(directory) as files:
        shapes = {name: file.tensors[name].shape for name, file in files.items()}
        return {
            name: files[name].read(name, tuple(slice(0, size) for size in shape))
            for name, shape in shapes.items()
            if len(shape) in (1, 2)
        }


def expected_params(
    spec: ModelSpec, tensors: dict[str, np.ndarray], tensor: int, layers: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """What loading must yield: path -> whole stored parameter, computed on whole arrays."""
    table = families.table(spec)
    params = {}
    for parameter in parameters(spec, layers or (0, spec.num_layers), tensor):
        weight = table.weight(parameter.path)
        whole = tensors[weight.name].T if weight.transpose else tensors[weight.name]
        whole = np.split(whole, weight.parts)[weight.part]
        if "kv_heads" in parameter.axes:
            heads = whole.reshape(spec.kv_heads, spec.head_dim, -1)
            whole = np.repeat(heads, spec.stored_kv_heads(tensor) // spec.kv_heads, axis=0)
        elif "vocab" in parameter.axes:
            padding = spec.padded_vocab(tensor) - spec.vocab_size
            whole = np.concatenate([whole, np.zeros((padding, spec.hidden_size), whole.dtype)])
        params[parameter.path] = whole.reshape(parameter.shape)
    return params


def assert_holds(stage: Stage, expected: dict[str, np.ndarray]) -> None:
    """The stage's parameters are these, bit for bit, and lie where they should."""
    assert {leaf.path for leaf in stage.blueprint.leaves} == set(expected)
    for leaf, array in zip(stage.blueprint.leaves, stage.params, strict=True):
        assert array.dtype == expected[leaf.path].dtype, leaf.path
        assert array.sharding.is_equivalent_to(leaf.sharding, array.ndim), leaf.path
        assert np.asarray(array).tobytes() == np.ascontiguousarray(expected[leaf.path]).tobytes(), leaf.path
