"""A4: composed profiles against measured serving runs on H100 (time per output token).

    python -m tests.benchmarks.accuracy_silicon

Each run serves requests of one input and one output length with a fixed number of requests in flight. While one of
them decodes its O tokens, each of the other B - 1 slots ends once and a new prompt takes it, so that a token takes, on
average, one decode step of B rows at the mean context, and (B - 1) / O of a prefill: no overlap, no scheduling cost.
Where their caches exceed 90% of memory less weights (vLLM's default share), B is the rows that fit.
`calibrated` multiplies both by scalars that fit the other half of the runs best in relative squares (even and odd runs
in the file's order, each half predicted from the other). The runs of Qwen3-32B are vLLM 0.12 (the tables: 0.14) and
say no precision, taken as bfloat16; those of Llama-3.1-8B are TensorRT-LLM's, a check across backends. Nothing of the
importers was fitted to these runs.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np

from solver.facts.model_config import parse_config, read_model_spec
from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.presets import CONFIGS
from solver.facts.workload import Floats
from solver.importers.compose import compose
from solver.importers.tables import TABLES
from solver.plan.memory import cache_row_bytes, weight_bytes
from solver.plan.schedule import StageSpec
from tests.benchmarks import accuracy_report

USABLE_BYTES = 0.9 * 80 * 2**30
LLAMA_PATH = "meta-llama/Llama-3.1-8B-Instruct"
# Qwen3-32B's public configuration.
QWEN3_32B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Arrays over the runs of one model.

    Attributes:
      tensor, batch: degree and requests in flight.
      decode_s: predicted step.
      prefill_s: predicted share of prefills per token.
      measured_s: time per output token.
    """

    tensor: Floats
    batch: Floats
    decode_s: Floats
    prefill_s: Floats
    measured_s: Floats


def cached_tokens(spec: ModelSpec, tensor: int) -> float:
    """Tokens whose keys and values the devices of one instance have room for."""
    stage = StageSpec(role="both", layers=(0, spec.num_layers), devices=tuple(range(tensor)), tensor=tensor)
    room = USABLE_BYTES - weight_bytes(spec, stage, "bfloat16")
    return room / cache_row_bytes(spec, stage, 1, "bfloat16")


def runs_of(tables: Path, spec: ModelSpec, where: dict[str, str]) -> Runs:
    """The measured runs whose columns are as `where` says, each with its prediction."""
    profile = compose(spec, "h100-80g", "bfloat16", tables=tables)
    found = []
    with (tables / "aiconfigurator" / "silicon_h100.csv").open() as file:
        for row in csv.DictReader(file):
            if any(row[name] != value for name, value in where.items()):
                continue
            tensor, batch, prompt, output = (int(row[c]) for c in ("tp_size", "batch_size", "isl", "osl"))
            layer, end = profile.layer(tensor, LayerKind()), profile.end(tensor)
            rows = min(batch, cached_tokens(spec, tensor) / (prompt + output / 2))
            decode = spec.num_layers * layer.decode.at(rows, prompt + output / 2)
            decode = decode + end.embed.at(rows, 0) + end.head.at(rows, 0) + profile.dispatch_s
            prefill = spec.num_layers * layer.encode.at(1, prompt) + end.embed.at(prompt, 0) + end.head.at(1, 0)
            share = (rows - 1) / output * (prefill + profile.dispatch_s)
            found.append((tensor, batch, float(decode), float(share), 1e-3 * float(row["silicon_tpot_ms"])))
    return Runs(*np.array(found, np.float64).T)


def uncalibrated(runs: Runs) -> Floats:
    """Relative errors."""
    return (runs.decode_s + runs.prefill_s) / runs.measured_s - 1


def calibrated(runs: Runs) -> Floats:
    """Relative errors of each half under two scalars fitted to the other."""
    parts = np.stack([runs.decode_s, runs.prefill_s], axis=1) / runs.measured_s[:, None]
    errors = np.empty(len(parts))
    half = np.arange(len(parts)) % 2
    for side in (0, 1):
        scalars = np.linalg.lstsq(parts[half != side], np.ones((half != side).sum()), rcond=None)[0]
        errors[half == side] = parts[half == side] @ scalars - 1
    return errors


def both(tables: Path) -> dict[str, Runs]:
    """Runs by name."""
    llama = read_model_spec(CONFIGS / "models" / "llama-3-8b.json")
    qwen_where = {"model_path": "Qwen/Qwen3-32B", "backend": "vllm", "precision": ""}
    return {
        "Qwen3-32B, vllm": runs_of(tables, parse_config(QWEN3_32B), qwen_where),
        "Llama-3.1-8B, trtllm": runs_of(tables, llama, {"model_path": LLAMA_PATH, "backend": "trtllm"}),
    }


def rows(found: dict[str, Runs]) -> list[accuracy_report.Row]:
    """Errors of all runs, then by degree and by requests in flight."""
    table = []
    for name, runs in found.items():
        plain, fitted = uncalibrated(runs), calibrated(runs)
        goals = ("mean <= 15%", "mean <= 7%") if "Qwen3" in name else ("", "")
        table.append(accuracy_report.error_row(f"{name}, uncalibrated", goals[0], plain))
        table.append(accuracy_report.error_row(f"{name}, two scalars from the other half", goals[1], fitted))
        for what, values in (("tensor", runs.tensor), ("in flight", runs.batch)):
            for value in np.unique(values):
                chosen = plain[values == value]
                table.append(accuracy_report.error_row(f"{name}, uncalibrated, {what} {value:g}", "", chosen))
    return table


if __name__ == "__main__":
    accuracy_report.write(
        "accuracy_silicon",
        "A4: composition against measured serving runs on H100",
        rows(both(TABLES)),
        (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
    )
