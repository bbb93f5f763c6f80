"""Our side of the parity with transformers: loads a case that `tests/tools/make_golden.py` wrote and computes the same.

The cache here is the plainest one that keeps the contract of `CacheOps`; the engine's own has its own tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import safe_open

from exegpt_jax.models.families import table
from exegpt_jax.models.families.table import WeightTable, read_slice
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Leaf, Stage, blueprint
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec
from tests.exegpt_jax import parity_t5

LOGITS_TOLERANCE = 1e-4
# Where the reference's two best scores lie closer than this (relative), either may be chosen, and what follows differs.
TIE = 1e-5

Layer = tuple[Array, Array]
Carry = tuple[Array, Array, tuple[Layer, ...]]


class PlainCache:
    """Keys and values [rows, kv_heads, length, head_dim] per layer."""

    def write(self, layer: Layer, k: Array, v: Array, positions: Array) -> Layer:
        row = jnp.arange(k.shape[0])[:, None]
        where = jnp.where(positions < 0, layer[0].shape[2], positions)
        return tuple(held.at[row, :, where].set(new, mode="drop") for held, new in zip(layer, (k, v), strict=True))

    def view(self, layer: Layer) -> tuple[Array, Array]:
        return layer

    def fresh(self, k: Array, v: Array) -> Layer:
        return k.swapaxes(1, 2), v.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A directory of `make_golden.py`; `golden` holds the arrays that its `reference` describes."""

    name: str
    directory: Path
    spec: ModelSpec
    golden: dict[str, np.ndarray]


def read_case(directory: Path) -> Case:
    with np.load(directory / "golden.npz") as arrays:
        return Case(directory.name, directory, read_model_spec(directory), dict(arrays))


def load(case: Case, tensor: int, layers: tuple[int, int] | None = None) -> Stage:
    """The case's weights as float32 on the first `tensor` devices, each shard read by itself."""
    devices = jax.devices()[:tensor]
    stage = StageSpec("both", layers or (0, case.spec.num_layers), tuple(range(tensor)), tensor)
    plan = blueprint(case.spec, stage, "float32", make_mesh(devices))
    with safe_open(case.directory / "model.safetensors", framework="numpy") as file:
        weights = table(case.spec)
        stored = {weights.full_name(name): name for name in list(file.keys())}
        return plan.bind([_load_leaf(file, weights, stored, case.spec, leaf) for leaf in plan.leaves])


def _load_leaf(file: safe_open, weights: WeightTable, stored: dict[str, str], spec: ModelSpec, leaf: Leaf) -> Array:
    weight = weights.weight(leaf.path)
    source = file.get_slice(stored[weight.name])

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        return read_slice(weight, spec, leaf.axes, leaf.shape, index, source).astype(leaf.dtype)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)


def generator(stage: Stage, steps: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function of prompts [rows, tokens] and lengths [rows]: greedy tokens [rows, steps] and the prompts' logits."""
    ops = PlainCache()

    @jax.jit
    def run(params: tuple[Array, ...], prompts: Array, lengths: Array) -> tuple[Array, Array]:
        model = stage.module(params)
        rows, tokens = prompts.shape
        index = jnp.arange(tokens)[None, :]
        positions = jnp.where(index < lengths[:, None], index, -1)
        x, layers = model.forward(prompts, positions, None, ops)
        logits = model.head(x)
        first = jnp.argmax(logits[jnp.arange(rows), lengths - 1], axis=-1)
        room = [(0, 0), (0, 0), (0, steps), (0, 0)]
        layers = jax.tree.map(lambda held: jnp.pad(held, room), layers)

        def step(carry: Carry, _: None) -> tuple[Carry, Array]:
            token, position, layers = carry
            x, layers = model.forward(token[:, None], position[:, None], layers, ops)
            return (jnp.argmax(model.head(x[:, 0]), axis=-1), position + 1, layers), token

        _, out = jax.lax.scan(step, (first, lengths, layers), length=steps)
        return out.T, logits[..., : stage.spec.vocab_size]

    return lambda prompts, lengths: jax.device_get(run(stage.params, jnp.asarray(prompts), jnp.asarray(lengths)))


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one run lies from the reference.

    Attributes:
      logits: largest absolute difference over the prompts' tokens (with an encoder: over the first of output).
      rows: requests compared.
      wrong: requests with another token where the reference has no tie.
      ties: requests whose comparison ended early at a tie.
    """

    logits: float
    rows: int
    wrong: int
    ties: int

    @property
    def matches(self) -> bool:
        return self.logits <= LOGITS_TOLERANCE and self.wrong == 0


def compare(case: Case, tensor: int, batched: bool) -> Difference:
    """Runs the case's prompts together, or one at a time, on `tensor` devices."""
    golden = case.golden
    steps = golden["tokens"].shape[1]
    stage = load(case, tensor)
    prompt_logits = case.spec.first_token == "encode"
    longest = golden["prompts"].shape[1]
    run = generator(stage, steps) if prompt_logits else parity_t5.generator([stage], PlainCache(), steps, longest)
    rows = [slice(0, None)] if batched else [slice(row, row + 1) for row in range(len(golden["lengths"]))]
    runs = [run(golden["prompts"][row], golden["lengths"][row]) for row in rows]
    tokens, logits = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    real = np.arange(longest)[None, :] < (golden["lengths"][:, None] if prompt_logits else longest)
    real = np.broadcast_to(real, logits.shape[:2])
    expected = golden["batched_tokens" if batched else "tokens"]
    wrong = ties = 0
    for row in range(len(tokens)):
        close = np.flatnonzero(golden["margins"][row] < TIE)
        end = int(close[0]) if len(close) else steps
        ties += end < steps
        wrong += not np.array_equal(tokens[row, :end], expected[row, :end])
    return Difference(float(np.abs(logits - golden["logits"])[real].max()), len(tokens), wrong, ties)
