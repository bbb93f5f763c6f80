"""A Profile of any decoder-only model, or of a T5, on a device kind that published tables speak for.

One layer is its parts (`solver.importers.parts`) over grids of sizes that hold the tables' own points. `exegpt profile
--from_tables` and the profiles that ship come from here; `solver.facts.profile_file` finds the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import EndTimes, LayerTimes, Profile, Table
from solver.facts.profile_file import shape_digest
from solver.facts.tensor_degree import tensor_degrees
from solver.facts.workload import Floats
from solver.importers import encoder_decoder, parts
from solver.importers.devices import TableDevice, table_device
from solver.importers.llmservingsim import check_shape
from solver.importers.log_grid import Times
from solver.importers.tables import TABLES

DTYPES = ("bfloat16", "float16")
DEGREES = (1, 2, 4, 8)
# The tables' row counts, and enough between them that straight lines follow a curve.
ENCODE_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ENCODE_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
DECODE_ROWS = (
    *(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048),
)
DECODE_CONTEXT = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
EMBED_TOKENS = (1, 16, 128, 512, 2048, 4096, 16384, 65536)
# Host time to launch a stage's micro-batch: the tables' decode kernels ran inside a captured graph, whose launch
# takes about ten microseconds and its inputs as long again. An assumption: no table holds it.
DISPATCH_S = 20e-6
# Relative spread of repeated steps, where none was measured: the larger of the stage time variations of decode that
# the ExeGPT paper reports (Table 7: 2.4% round robin, 5.5% workload-aware).
SPREAD = 0.055
_DIGITS = 5


def compose(spec: ModelSpec, device_kind: str, dtype: str, model: str = "", tables: Path = TABLES) -> Profile:
    """Times at the tensor degrees 1, 2, 4 and 8 that divide the model (degree 1 alone where tables hold one device).

    Args:
      spec: the model.
      device_kind: one that `solver.importers.devices` lists.
      dtype: a 16-bit float; the tables' kernels run both at one rate.
      model: name for people.
      tables: folder of published tables.

    Raises:
      ValueError: one line: unknown device kind or dtype, or a table missing.
    """
    device = table_device(device_kind)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: the tables hold 16-bit floats, not {dtype}; choose one of {', '.join(DTYPES)}")
    if device.single:
        check_shape(spec, device)
    measured = (1,) if device.single else DEGREES
    degrees = [degree for degree in measured if degree in tensor_degrees(spec)]
    kinds = sorted(dict.fromkeys(run.kind for run in spec.layers), key=lambda kind: kind.window_tokens or 0)
    return Profile(
        model=model or f"{spec.family} of {spec.num_layers} layers, width {spec.hidden_size}",
        shape=shape_digest(spec),
        dtype=dtype,
        cache_dtype=dtype,
        device_kind=device_kind,
        source=_source(device),
        layers=tuple(_layer(tables, device, spec, degree, kind) for degree in degrees for kind in kinds),
        ends=tuple(_end(tables, device, spec, degree) for degree in degrees),
        dispatch_s=DISPATCH_S,
        phase_s=0.0,
        padded=False,
        spread=SPREAD,
    )


def _layer(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int, kind: LayerKind) -> LayerTimes:
    def encode(rows: Floats, tokens: Floats) -> Times:
        if spec.encoder_layers:
            return encoder_decoder.encode_times(folder, device, spec, tensor, kind, rows, tokens)
        dense = parts.dense_parts(folder, device, spec, tensor, rows * tokens)
        return parts.add([*dense, parts.attention_part(folder, device, spec, tensor, kind, "context", rows, tokens)])

    def decode(rows: Floats, context: Floats) -> Times:
        if spec.encoder_layers:
            return encoder_decoder.decode_times(folder, device, spec, tensor, kind, rows, context)
        dense = parts.dense_parts(folder, device, spec, tensor, rows)
        return parts.add(
            [*dense, parts.attention_part(folder, device, spec, tensor, kind, "generation", rows, context)]
        )

    return LayerTimes(
        tensor, kind, _tabulate(encode, ENCODE_ROWS, ENCODE_TOKENS), _tabulate(decode, DECODE_ROWS, DECODE_CONTEXT)
    )


def _end(folder: Path, device: TableDevice, spec: ModelSpec, tensor: int) -> EndTimes:
    def embed(tokens: Floats, _: Floats) -> Times:
        return parts.add(parts.embed_parts(folder, device, spec, tensor, tokens))

    def head(rows: Floats, _: Floats) -> Times:
        return parts.add(parts.head_parts(folder, device, spec, tensor, rows))

    return EndTimes(tensor, _tabulate(embed, EMBED_TOKENS, (0,)), _tabulate(head, DECODE_ROWS, (0,)))


def _tabulate(times: Callable[[Floats, Floats], Times], first: tuple[int, ...], second: tuple[int, ...]) -> Table:
    """Times on a grid, rounded to digits that no measurement has."""
    x, y = np.array(first, np.float64), np.array(second, np.float64)
    rows, columns = np.meshgrid(x, y, indexing="ij")
    found = times(rows, columns)
    rounded = [[float(f"{value:.{_DIGITS - 1}e}") for value in row] for row in found.seconds]
    return Table(x, y, np.array(rounded), found.marks)


def _source(device: TableDevice) -> str:
    if device.system:
        return (
            f"composed from aiconfigurator {device.system} tables (commit 095f58a5, vLLM {device.vllm}; Apache-2.0, "
            "NVIDIA CORPORATION & AFFILIATES); norms, positions, activation, embedding and sampling from bandwidth; "
            "dispatch and spread assumed"
        )
    if device.single:
        return (
            f"composed from LLMServingSim's {device.kind} tables of Llama 3.1 8B (commit 5daddb21; MIT, CASYS Lab at "
            "KAIST); dispatch and spread assumed"
        )
    return (
        f"composed from vidur {device.vidur} tables (commits 7d475133 and c211fca; MIT, Microsoft Corporation); "
        "attention estimated from the A100's (aiconfigurator commit 095f58a5, vLLM 0.14.0; Apache-2.0, NVIDIA "
        "CORPORATION & AFFILIATES) by peak bandwidth and rate (the A100's estimated so from the H100's errs by "
        "18% in the median, 39% at the 90th percentile in decode; 10% and 32% in prefill); the rest from bandwidth; "
        "dispatch and spread assumed"
    )
