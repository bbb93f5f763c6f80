"""Qwen3: Llama's names; queries and keys carry head norms."""

from __future__ import annotations

from exegpt_jax.models.families import llama

WEIGHTS = llama.WEIGHTS
