"""Qwen2: Llama's names; query, key and value carry biases."""

from __future__ import annotations

from exegpt_jax.models.families import llama

WEIGHTS = llama.WEIGHTS
