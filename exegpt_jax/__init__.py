"""Who computes: models, weights, meshes, compiled programs, the runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exegpt_jax.llm import LLM as LLM
    from exegpt_jax.session import Completion as Completion

__all__ = ["LLM", "Completion"]


def __getattr__(name: str) -> object:
    """`LLM` brings jax, so it is imported when it is first asked for."""
    if name == "LLM":
        from exegpt_jax.llm import LLM

        return LLM
    if name == "Completion":
        from exegpt_jax.session import Completion

        return Completion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
