"""A7: key/value capacity in tokens, against DistServe's published table of OPT models on A100-80G.

    python -m tests.benchmarks.accuracy_memory

DistServe's convention: 93% of 80 GiB per device, minus 12 h^2 two-byte weights per layer shared by all devices of the
instance, minus an embedding of 50,272 + 2,050 rows whole on each; what is left holds two h-wide two-byte vectors per
token and layer. Activations count nothing. The same shapes counted by `solver.plan.memory`, which knows biases, norms
and which stage holds what, stand beside it; its capacity is that of the instance's fullest stage.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.facts.presets import CONFIGS
from solver.importers.tables import TABLES
from solver.plan.memory import cache_row_bytes, weight_bytes
from solver.plan.schedule import StageSpec
from tests.benchmarks import accuracy_report

USABLE_BYTES = 0.93 * 80 * 2**30
EMBED_ROWS = 50_272 + 2_050
# Layers, hidden size, heads of the models in the table (their public configurations).
OPT = {
    "facebook/opt-13b": (40, 5120, 40),
    "facebook/opt-30b": (48, 7168, 56),
    "facebook/opt-66b": (64, 9216, 72),
    "facebook/opt-175b": (96, 12288, 96),
}


@dataclasses.dataclass(frozen=True)
class Capacity:
    """One row of the table: what it says and what the two counts give."""

    model: str
    tensor: int
    stages: int
    published_tokens: int
    by_convention_tokens: float
    by_our_bytes_tokens: float


def by_convention(layers: int, hidden: int, tensor: int, stages: int) -> float:
    """Tokens under DistServe's convention."""
    devices = tensor * stages
    weights = 24 * hidden**2 * layers / devices + 2 * EMBED_ROWS * hidden
    return (USABLE_BYTES - weights) * devices / (4 * hidden * layers)


def by_our_bytes(spec: ModelSpec, tensor: int, stages: int) -> float:
    """Tokens that the fullest stage has room for, with layers shared as evenly as they go."""
    cuts = np.linspace(0, spec.num_layers, stages + 1).round().astype(int)
    room = []
    for first, end in itertools.pairwise(cuts):
        stage = StageSpec(role="both", layers=(int(first), int(end)), devices=tuple(range(tensor)), tensor=tensor)
        left = USABLE_BYTES - weight_bytes(spec, stage, "float16")
        room.append(left / cache_row_bytes(spec, stage, 1, "float16"))
    return min(room)


def capacities(tables: Path) -> list[Capacity]:
    """Every row of the published table."""
    base = read_model_spec(CONFIGS / "models" / "opt-13b.json")
    found = []
    with (tables / "distserve" / "max_num_tokens.csv").open() as file:
        for row in csv.DictReader(file):
            layers, hidden, heads = OPT[row["model"]]
            tensor, stages = int(row["tp"]), int(row["pp"])
            spec = dataclasses.replace(
                base,
                hidden_size=hidden,
                mlp_size=4 * hidden,
                heads=heads,
                kv_heads=heads,
                head_dim=hidden // heads,
                layers=(LayerRun(LayerKind(), layers),),
            )
            tokens = int(row["max_num_tokens"])
            convention = by_convention(layers, hidden, tensor, stages)
            found.append(Capacity(row["model"], tensor, stages, tokens, convention, by_our_bytes(spec, tensor, stages)))
    return found


def rows(found: list[Capacity]) -> list[accuracy_report.Row]:
    """Errors per model."""
    table: list[accuracy_report.Row] = []
    for model in [*OPT, "all"]:
        chosen = [c for c in found if model in (c.model, "all")]
        if not chosen:
            continue
        for name, goal in (("convention", "each <= 0.1%"), ("our_bytes", "")):
            errors = np.array([getattr(c, f"by_{name}_tokens") / c.published_tokens - 1 for c in chosen])
            row = accuracy_report.error_row(f"{model}, by {name.replace('_', ' ')}", goal, errors)
            table.append({**row, "most_percent": round(100 * float(np.abs(errors).max()), 4)})
    return table


if __name__ == "__main__":
    accuracy_report.write(
        "accuracy_memory",
        "A7: key/value capacity against DistServe's table",
        rows(capacities(TABLES)),
        (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
    )
