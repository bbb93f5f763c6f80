"""One table of weight names per family; `table(spec)` picks a model's."""

from __future__ import annotations

import dataclasses

from exegpt_jax.models.families import gpt2, llama, mistral, opt, qwen2, qwen3, t5
from exegpt_jax.models.families.table import Weight, WeightTable
from solver.facts.model_spec import Family, ModelSpec

TABLES: dict[Family, WeightTable] = {
    "gpt2": gpt2.WEIGHTS,
    "opt": opt.WEIGHTS,
    "llama": llama.WEIGHTS,
    "mistral": mistral.WEIGHTS,
    "qwen2": qwen2.WEIGHTS,
    "qwen3": qwen3.WEIGHTS,
}


def table(spec: ModelSpec) -> WeightTable:
    """The family's table; with tied embeddings, a head apart from its embedding reads the embedding's tensor."""
    weights = t5.table(spec) if spec.family == "t5" else TABLES[spec.family]
    if not spec.tied_embeddings:
        return weights
    embedding = weights.weight("embed.tokens").name
    kept = tuple(weight for weight in weights.weights if weight.path != "head.weight")
    return dataclasses.replace(
        weights,
        weights=(*kept, Weight("head.weight", embedding)),
        ignored=(*weights.ignored, "lm_head.weight"),
    )
