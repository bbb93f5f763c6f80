"""A3: vidur's measured layers of Llama 2 70B on A100: 30% of the rows predict the other 70%.

    python -m tests.benchmarks.accuracy_heldout

The rows kept are drawn at random (five seeds, errors pooled). Products and the small operators are read along tokens as
the importers read their grids: straight lines in log(time / roofline) over log tokens. Attention (tensor 2; decode by
rows and context, prefill of one prompt by its tokens and those cached before) lies scattered, so each point is the mean
of its four nearest kept neighbours in the logarithms of both sizes, by inverse squared distance, of the same ratio.
Published times are rounded to a microsecond, up to 5% of the shortest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solver.facts.workload import Floats
from solver.importers.attention import Heads
from solver.importers.attention import roofline_s as attention_roofline_s
from solver.importers.devices import DEVICES, LAUNCH_S
from solver.importers.gemm import roofline_s as gemm_roofline_s
from solver.importers.log_grid import grid_of
from solver.importers.tables import TABLES, read_columns
from solver.importers.vidur import DEGREES, OPERATORS, SMALL_OPERATORS, operator_seconds, product_shapes
from tests.benchmarks import accuracy_report

MODEL = "meta-llama/Llama-2-70b-hf"
KEPT = 0.3
SEEDS = (0, 1, 2, 3, 4)
NEIGHBOURS = 4
A100 = DEVICES["a100-80g"]
# Llama 2 70B at tensor 2.
HEADS = Heads(32, 4)


def split(n: int, seed: int) -> np.ndarray:
    """True for the rows that are kept."""
    kept = np.zeros(n, bool)
    kept[np.random.default_rng(seed).permutation(n)[: round(KEPT * n)]] = True
    return kept


def along_tokens(tokens: Floats, seconds: Floats, roof: Floats, seeds: tuple[int, ...]) -> Floats:
    """Relative errors on the rows that were not kept."""
    errors = []
    for seed in seeds:
        kept = split(len(tokens), seed)
        grid = grid_of((tokens[kept],), np.log(seconds[kept] / roof[kept]))
        ratio, _ = grid.at(tokens[~kept])
        errors.append(ratio * roof[~kept] / seconds[~kept] - 1)
    return np.concatenate(errors)


def scattered(first: Floats, second: Floats, seconds: Floats, roof: Floats, seeds: tuple[int, ...]) -> Floats:
    """Relative errors on the rows that were not kept, from their nearest kept neighbours."""
    place = np.log(np.stack([first, second], axis=1))
    log_ratio = np.log(seconds / roof)
    errors = []
    for seed in seeds:
        kept = split(len(first), seed)
        for part in np.array_split(np.flatnonzero(~kept), 16):
            squares = ((place[part, None] - place[None, kept]) ** 2).sum(axis=2) + 1e-12
            nearest = np.argpartition(squares, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
            weights = 1 / np.take_along_axis(squares, nearest, axis=1)
            guess = (weights * log_ratio[kept][nearest]).sum(axis=1) / weights.sum(axis=1)
            errors.append(np.exp(guess - log_ratio[part]) - 1)
    return np.concatenate(errors)


def operator_errors(tables: Path, seeds: tuple[int, ...]) -> dict[str, Floats]:
    """Errors by operator and degree."""
    found = {}
    for tensor in DEGREES:
        shapes = product_shapes(MODEL, tensor)
        for operator in (*OPERATORS, *SMALL_OPERATORS):
            tokens, seconds = operator_seconds(tables, "a100", MODEL, tensor, operator)
            if operator in shapes:
                roof = gemm_roofline_s(A100, tokens, *shapes[operator])
            else:
                # Bytes in proportion to tokens, whatever the width: a constant factor of the ratio.
                roof = LAUNCH_S + tokens * 8 * 8192 / A100.bytes_per_s
            found[f"{operator}, tensor {tensor}"] = along_tokens(tokens, seconds, roof, seeds)
    return found


def attention_errors(tables: Path, seeds: tuple[int, ...]) -> dict[str, Floats]:
    """Errors of decode and prefill attention at tensor 2."""
    path = tables / "vidur" / "a100_attention_hist" / "attention_acb95f6.csv.gz"
    decode = read_columns(
        path, ("batch_size", "kv_cache_size", "time_stats.attn_decode.median"), {"is_prefill": "False"}
    )
    batch, context, seconds = (column for column in decode.values())
    roof = attention_roofline_s(A100, "generation", batch, context, HEADS)
    found = {"attn_decode, tensor 2": scattered(batch, context, 1e-3 * seconds, roof, seeds)}
    prefill = read_columns(
        path, ("prefill_chunk_size", "kv_cache_size", "time_stats.attn_prefill.median"), {"is_prefill": "True"}
    )
    chunk, before, seconds = (column for column in prefill.values())
    flops = 4 * chunk * (before + chunk / 2) * HEADS.query * HEADS.width
    moved = 4 * HEADS.width * ((before + chunk) * HEADS.key_value + chunk * HEADS.query)
    roof = flops / A100.flops_per_s + moved / A100.bytes_per_s + LAUNCH_S
    # The second size is what the last query attends to: positions cached before alone may be none, which has no log.
    found["attn_prefill, tensor 2"] = scattered(chunk, before + chunk, 1e-3 * seconds, roof, seeds)
    return found


def rows(tables: Path, seeds: tuple[int, ...] = SEEDS) -> list[accuracy_report.Row]:
    """One row per operator and degree, then all together."""
    operators, attention = operator_errors(tables, seeds), attention_errors(tables, seeds)
    products = [errors for name, errors in operators.items() if name.split(",")[0] in OPERATORS]
    table: list[accuracy_report.Row] = [
        accuracy_report.error_row("products of all degrees", "mean <= 5%", np.concatenate(products)),
        accuracy_report.error_row("all operators of all degrees", "mean <= 5%", np.concatenate([*operators.values()])),
    ]
    table += [accuracy_report.error_row(name, "mean <= 5%", errors) for name, errors in attention.items()]
    return table + [accuracy_report.error_row(name, "", errors) for name, errors in operators.items()]


if __name__ == "__main__":
    accuracy_report.write(
        "accuracy_heldout",
        "A3: held-out rows of vidur's Llama 2 70B on A100",
        rows(TABLES),
        (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
        seed=0,
    )
