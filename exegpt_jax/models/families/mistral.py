"""Mistral: Llama's names; its window is no weight."""

from __future__ import annotations

from exegpt_jax.models.families import llama

WEIGHTS = llama.WEIGHTS
