"""Random planning problems for differential tests, from a seeded generator: workloads, profiles, costs, pipelines.

Ragged ones break every rule that a proof might lean on: times fall as rows rise, jump at multiples, and change their
order between contexts.
"""

from __future__ import annotations

import math

import numpy as np

from solver.facts.cluster import LEVELS, Cluster, DeviceKind, HostGroup, Link
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec, Rope
from solver.facts.profile import EndTimes, LayerTimes, Mark, Profile, Table
from solver.facts.workload import Floats, Workload, merge
from solver.simulate.costs import Pipeline, PlacedStage, UnitCosts

# Table 3 of the paper with the parent parameters of its truncated outputs: input (mean, deviation, most), output alike.
PAPER_TASKS = {
    "S": ((256, 252, 512), (31.7, 13.4, 80)),
    "T": ((128, 81, 256), (117.8, 79.9, 320)),
    "G": ((64, 23, 128), (184.3, 102.1, 480)),
    "C1": ((256, 115, 512), (62.0, 32.4, 160)),
    "C2": ((512, 252, 1024), (237.7, 155.3, 640)),
}


def paper_task(name: str, inputs: int = 16) -> Workload:
    """A task of the paper, inputs put together in about `inputs` lengths so that formulas stay quick."""
    (mean_i, std_i, most_i), (mean_s, std_s, most_s) = PAPER_TASKS[name]
    prompts, weight = _truncated(mean_i, std_i, most_i)
    parts = [part for part in np.array_split(np.arange(most_i), inputs) if part.size]
    short = np.array([round(float(prompts[part] @ weight[part] / weight[part].sum())) for part in parts])
    share = np.array([weight[part].sum() for part in parts])
    outputs, chance = _truncated(mean_s, std_s, most_s)
    joint = np.outer(share, chance)
    return merge(f"paper-{name}", "Table 3", *_pairs(short, outputs), joint.ravel())


def _truncated(mean: float, std: float, most: int) -> tuple[np.ndarray, Floats]:
    """ceil of a normal truncated to [0, most]: values 1 .. most and their probabilities."""
    edges = (np.arange(most + 1) - mean) / (std * math.sqrt(2))
    below = np.array([math.erf(edge) for edge in edges])
    mass = np.diff(below)
    return np.arange(1, most + 1), mass / mass.sum()


def _pairs(inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.meshgrid(inputs, outputs, indexing="ij")
    return first.ravel().astype(np.int64), second.ravel().astype(np.int64)


def random_workload(
    rng: np.random.Generator, pairs: int = 30, most_input: int = 200, most_output: int = 40
) -> Workload:
    """Pairs without pattern; every third time short prompts have long answers, every third time long ones have."""
    inputs = rng.integers(1, most_input + 1, pairs)
    outputs = rng.integers(1, most_output + 1, pairs)
    turn = int(rng.integers(3))
    if turn < 2:
        inputs, outputs = np.sort(inputs), np.sort(outputs)[:: 1 if turn else -1]
    return merge("random", "seeded", inputs, outputs, rng.exponential(1.0, pairs) + 1e-3)


def random_curve(rng: np.random.Generator, most_rows: int, ragged: bool) -> Floats:
    """float64 [most_rows + 1]: seconds by rows; 0 for none. Ragged: steps, drops and noise of up to 40%."""
    rows = np.arange(most_rows + 1, dtype=np.float64)
    base, slope = rng.uniform(0.2, 2.0) * 1e-3, rng.uniform(0.01, 0.4) * 1e-3
    seconds = base + slope * rows
    if ragged:
        step = int(rng.integers(2, 9))
        seconds = base + slope * np.ceil(rows / step) * step
        seconds *= rng.uniform(0.6, 1.4, rows.size)
    seconds[0] = 0.0
    return seconds


def random_unit(
    rng: np.random.Generator,
    most_rows: int,
    *,
    ragged: bool = False,
    kind: str = "x",
    tensor: int = 1,
    contexts: tuple[float, ...] = (1.0, 100.0, 300.0),
) -> UnitCosts:
    """Costs without a profile behind them."""
    decode = np.stack([random_curve(rng, most_rows, ragged) for _ in contexts])
    if not ragged:
        decode = decode[:1] * (1 + np.array(contexts)[:, None] / 200)
    hand_over = {level: random_curve(rng, most_rows, ragged) * 0.3 * (i + 1) for i, level in enumerate(LEVELS)}
    return UnitCosts(
        kind=kind,
        tensor=tensor,
        encode_s=random_curve(rng, most_rows, ragged) * 8,
        contexts=np.array(contexts),
        decode_s=decode,
        embed_encode_s=random_curve(rng, most_rows, ragged) * 0.1,
        embed_decode_s=random_curve(rng, most_rows, ragged) * 0.1,
        head_encode_s=random_curve(rng, most_rows, ragged) * 0.5,
        head_decode_s=random_curve(rng, most_rows, ragged) * 0.5,
        hand_over_encode_s=hand_over,
        hand_over_decode_s={level: column * 0.5 for level, column in hand_over.items()},
        weights_bytes=int(rng.integers(1_000_000, 3_000_000)) // tensor,
        embed_bytes=500_000 // tensor,
        head_bytes=500_000 // tensor,
        cache_token_bytes=int(rng.integers(100, 400)) // tensor,
        estimated=False,
    )


def random_pipeline(rng: np.random.Generator, stages: int, most_rows: int, *, ragged: bool = False) -> Pipeline:
    """Unequal stages of one or two units."""
    units = [random_unit(rng, most_rows, ragged=ragged, tensor=2**i) for i in range(min(stages, 2))]
    placed = tuple(
        PlacedStage(
            unit=units[int(rng.integers(len(units)))],
            layers=int(rng.integers(1, 5)),
            first=index == 0,
            last=index == stages - 1,
            link=None if index == stages - 1 else LEVELS[int(rng.integers(3))],
        )
        for index in range(stages)
    )
    return Pipeline(placed, return_s=float(rng.uniform(0, 1e-3)) if stages > 1 else 0.0)


def small_spec(layers: int = 4, window: int | None = None) -> ModelSpec:
    """A Llama-like toy; every other layer slides a window if one is given."""
    plain, sliding = LayerKind(), LayerKind(window_tokens=window)
    runs = tuple(LayerRun(sliding if window and i % 2 else plain, 1) for i in range(layers))
    return ModelSpec(
        family="llama",
        vocab_size=1000,
        hidden_size=64,
        mlp_size=128,
        heads=8,
        kv_heads=4,
        head_dim=8,
        layers=runs if window else (LayerRun(plain, layers),),
        max_positions=4096,
        norm="rms",
        norm_eps=1e-5,
        activation="silu",
        gated_mlp=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope=Rope(base=10000.0),
        position_offset=0,
        tied_embeddings=False,
    )


def random_table(rng: np.random.Generator, first: list[float], second: list[float], ragged: bool) -> Table:
    """Seconds that rise with both sizes, or about do so."""
    x, y = np.array(first), np.array(second)
    seconds = rng.uniform(1, 5) * 1e-4 + rng.uniform(1, 5) * 1e-7 * x[:, None] * (1 + y[None, :] / 50)
    if ragged:
        seconds = seconds * rng.uniform(0.5, 1.5, seconds.shape)
    return Table(x, y, seconds, np.full(seconds.shape, Mark.MEASURED, np.uint8))


def random_profile(
    rng: np.random.Generator,
    spec: ModelSpec,
    *,
    shape: str = "toy",
    tensors: tuple[int, ...] = (1, 2, 4),
    kind: str = "x",
    ragged: bool = False,
    padded: bool = False,
) -> Profile:
    """A profile of `spec` at several tensor degrees."""
    rows, tokens, contexts = [1.0, 2, 4, 8, 16, 32, 64, 128], [16.0, 64, 128, 256, 512], [1.0, 64, 256, 1024, 4096]
    kinds = tuple(dict.fromkeys(spec.layer_kinds()))
    return Profile(
        model="toy",
        shape=shape,
        dtype="float32",
        cache_dtype="float32",
        device_kind=kind,
        source="seeded",
        layers=tuple(
            LayerTimes(t, k, random_table(rng, rows, tokens, ragged), random_table(rng, rows, contexts, ragged))
            for t in tensors
            for k in kinds
        ),
        ends=tuple(
            EndTimes(t, random_table(rng, [1.0, 64, 65536], [0.0], ragged), random_table(rng, rows, [0.0], ragged))
            for t in tensors
        ),
        dispatch_s=2e-5,
        phase_s=1e-4 if padded else 0.0,
        padded=padded,
        spread=0.02,
    )


def small_cluster(kinds: tuple[str, ...] = ("x",), hosts: int = 1, islands: int = 1, per_island: int = 4) -> Cluster:
    """Hosts that are alike, once per kind."""
    return Cluster(
        name="small",
        source="made up",
        kinds=tuple(DeviceKind(kind, 8 * 2**30, 1e12, 1e14) for kind in kinds),
        groups=tuple(HostGroup(kind, hosts, islands, per_island) for kind in kinds),
        island=Link(2e-6, 3e11),
        host=Link(5e-6, 2.5e10),
        pod=Link(1e-5, 1.2e10),
    )
