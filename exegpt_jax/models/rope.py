"""Rotary position embedding: query and key heads are turned by angles that grow with their position.

Frequencies follow transformers' `modeling_rope_utils` for the plain, linear, llama3 and yarn kinds; they are
constants of a program, computed here in float32 like the reference's.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from solver.facts.model_spec import Rope


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Angle per position for each pair of a head, float32 [head_dim / 2], and the factor on cosine and sine."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = np.float32(1.0) / np.float32(rope.base) ** exponents
    if rope.scaling == "linear":
        return plain / np.float32(rope.factor), 1.0
    if rope.scaling == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.scaling == "yarn":
        return _yarn(rope, plain, head_dim), rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    return plain, 1.0


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    blend = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    kept = np.clip(blend, 0.0, 1.0)
    return ((1 - kept) * plain / rope.factor + kept * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """Pairs that turn often within the original context are kept, those that turn seldom stretched, between a ramp."""

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(rope.original_positions / (times * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(pair_that_turns(rope.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.beta_slow)), head_dim - 1)
    span = high - low if high != low else 0.001
    kept = 1 - np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / np.float32(span), 0.0, 1.0)
    return (plain / np.float32(rope.factor) * (1 - kept) + plain * kept).astype(np.float32)


def rotate(
    x: Float[Array, "rows tokens heads head_dim"], positions: Int[Array, "rows tokens"], rope: Rope
) -> Float[Array, "rows tokens heads head_dim"]:
    """Turns each pair (i, i + head_dim / 2) of every head by its position's angle, in float32."""
    table, factor = frequencies(rope, x.shape[-1])
    angles = positions[:, :, None, None].astype(jnp.float32) * table[None, None, None, :]
    cosine, sine = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1).astype(x.dtype)
