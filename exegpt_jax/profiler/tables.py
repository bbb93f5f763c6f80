"""From samples to the tables of a Profile: medians, what layers and what ends take of them, gaps filled and marked.

A profile has times per layer and times of the ends; this engine runs whole models. The ends are told from the layers by
models with fewer layers: of W = ends + sum of layers and W_kind = ends + one layer of that kind, both measured, the
ends follow. The layers then get all the rest of the whole model's time, so that ends plus layers of a table add up to
what was measured, exactly, at every measured point; the error of the split falls on models of another depth and on
stages alone. Hence times of layers are marked measured, those of ends interpolated.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from exegpt_jax.profiler.grid import Axes, Call, Point, kinds_of, prompt_share, short_specs
from exegpt_jax.profiler.probe import Sample
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import EndTimes, LayerTimes, Mark, Table
from solver.facts.workload import Floats

Samples = Mapping[str, Sequence[Sample]]

# Of a call's time, what the split leaves to either side at least: a time of 0 is no time.
_LEAST_SHARE = 1e-3
_LEAST_EMBED_S = 1e-10
# Shares of a call that the ends, and the embedding alone, are at most taken to be.
_MOST_ENDS, _MOST_EMBED = 0.9, 0.05


@dataclasses.dataclass(frozen=True)
class Overheads:
    """What calls cost beside the work of the model.

    Attributes:
      dispatch_s: host time of an encode call.
      phase_s: fixed cost of a decode call beside its iterations.
    """

    dispatch_s: float
    phase_s: float


def overheads(points: Sequence[Point], samples: Samples) -> Overheads:
    """Medians over the samples of the whole model."""
    whole = [p for p in points if p.cut == "whole"]
    host = [s.host_s for p in whole if p.call == "encode" for s in samples.get(p.key, ())]
    # A call's fixed cost is the difference of two times; on large shapes it drowns in their noise.
    decodes = sorted((p for p in whole if p.call == "decode" and samples.get(p.key)), key=lambda p: p.rows * p.tokens)
    fixed = [s.single_s - _iteration_s(s) for p in decodes[: max(1, len(decodes) // 2)] for s in samples[p.key]]
    return Overheads(_median(host), max(0.0, _median(fixed)))


def tables_of(
    spec: ModelSpec, axes: Axes, points: Sequence[Point], samples: Samples, costs: Overheads
) -> tuple[tuple[LayerTimes, ...], EndTimes]:
    """Layers and ends of one tensor degree, from the points of that degree."""
    grids, split, prompts_split = _Grids(points, samples, costs), _Split.of(spec, "decode"), _Split.of(spec, "encode")
    rows, contexts = np.array(axes.decode_rows, np.float64), np.array(axes.contexts, np.float64)
    encode_rows, prompts = np.array(axes.encode_rows, np.float64), np.array(axes.encode_tokens, np.float64)
    decode, encode = (fill(grids.raw(call, axes), *axes.of(call)) for call in ("decode", "encode"))
    decode_short = [grids.raw("decode", axes, kind) for kind in range(len(split.counts))]
    encode_short = [grids.raw("encode", axes, kind) for kind in range(len(split.counts))]

    # Of a column that was not measured short, nothing is told; the others agree but for noise. Whatever noise says, the
    # ends stay below the shortest call that contains them.
    shortest = np.minimum(decode.min(axis=1), np.interp(rows, encode_rows, encode.min(axis=1)))
    ends = _between(_medians(split.ends(decode, decode_short)), rows, _MOST_ENDS * shortest)
    prompt_tokens = encode_rows[:, None] * prompts
    embed = _slope(
        prompt_tokens - encode_rows[:, None],
        prompts_split.ends(encode, encode_short) - np.interp(encode_rows, rows, ends)[:, None],
    )
    embed = min(embed, _MOST_EMBED * float((encode / prompt_tokens).min()), float((ends / rows).min()) / 2)
    head = ends - embed * rows
    decode_layers = split.layers(decode, decode_short, ends[:, None])
    encode_ends = np.interp(encode_rows, rows, head)[:, None] + embed * prompt_tokens
    encode_layers = prompts_split.layers(encode, encode_short, encode_ends)
    if spec.encoder_layers:
        # Measured together: an encoder's layers do not decode, its decoder's make keys and values of the prompt.
        alone = encode_layers[0] / (1 + prompt_share(spec))
        encode_layers = [alone, encode_layers[0] - alone]
        decode_layers = [np.zeros_like(decode_layers[0]), decode_layers[0]]
    layers = tuple(
        LayerTimes(
            tensor=points[0].tensor,
            kind=kind,
            encode=Table(encode_rows, prompts, encode_layers[i], grids.marks("encode", axes)),
            decode=Table(rows, contexts, decode_layers[i], grids.marks("decode", axes)),
        )
        for i, kind in enumerate(kinds_of(spec))
    )
    most = np.array([1.0, max(2.0, encode_rows[-1] * prompts[-1])])
    return layers, EndTimes(points[0].tensor, _column(most, embed * most), _column(rows, head))


def _column(sizes: Floats, seconds: Floats) -> Table:
    """A table of one size, of times that follow from a split."""
    marks = np.full((len(sizes), 1), Mark.INTERPOLATED, np.uint8)
    return Table(sizes, np.zeros(1), seconds[:, None], marks)


def _medians(values: Floats) -> Floats:
    """Of each row's numbers; NaN where it has none."""
    return np.array([_median(row[~np.isnan(row)].tolist()) if not np.isnan(row).all() else np.nan for row in values])


def _between(ends: Floats, rows: Floats, most: Floats) -> Floats:
    """Ends at every row, gaps filled, above nothing and at most `most`."""
    known = ~np.isnan(ends)
    return np.clip(np.interp(rows, rows[known], ends[known]), _LEAST_SHARE * most, most)


def _slope(x: Floats, y: Floats) -> float:
    """Of the straight line through 0 and the known points; barely positive at least."""
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    square = float(x @ x)
    return max(_LEAST_EMBED_S, float(x @ y) / square if square > 0 else 0.0)


def spread_of(samples: Samples) -> float:
    """90th percentile over median of repeated samples, minus 1, pooled over the points that have three or more."""
    ratios: list[float] = []
    for repeated in samples.values():
        if len(repeated) > 2:
            times = [s.seconds / max(1, s.iterations) for s in repeated]
            ratios += [time / _median(times) for time in times]
    return max(0.0, float(np.percentile(ratios, 90)) - 1) if ratios else 0.0


def fill(raw: Floats, rows: Floats, tokens: Floats) -> Floats:
    """Gaps (NaN) by straight lines between measured points.

    Along the rows in columns that have their first row; rows beyond a column's last point in proportion (the engine
    makes that many calls of it). Columns without are filled from their neighbours. Raises ValueError where there
    is none with its first row.
    """
    table = raw.copy()
    complete = np.zeros(len(tokens), bool)
    for j in range(len(tokens)):
        known = np.flatnonzero(~np.isnan(raw[:, j]))
        if len(known) and known[0] == 0 and (len(known) > 1 or len(rows) == 1):
            last = known[-1]
            inside = np.interp(rows, rows[known], raw[known, j])
            table[:, j] = np.where(rows > rows[last], raw[last, j] * rows / rows[last], inside)
            complete[j] = True
    if not complete.any():
        raise ValueError("time_budget_s: too short to measure the corners of the grid; raise it")
    for i in range(len(rows)):
        across = np.interp(tokens, tokens[complete], table[i, complete])
        table[i] = np.where(np.isnan(table[i]), across, table[i])
    return table


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a whole model's time divides: W = ends + sum of count x layer, and a short model's S = ends + depth x layer.

    With an encoder, `layer` is one of its layers together with one of its decoder.

    Attributes:
      counts: layers of each kind.
      depth: layers of a short model.
    """

    counts: tuple[float, ...]
    depth: int

    @staticmethod
    def of(spec: ModelSpec, call: Call) -> _Split:
        kinds, short = spec.layer_kinds(), short_specs(spec)[0]
        if not spec.encoder_layers:
            return _Split(tuple(map(kinds.count, kinds_of(spec))), short.num_layers)
        encoders, share = spec.encoder_layers, prompt_share(spec)
        decoders = spec.num_layers - encoders
        pairs = decoders if call == "decode" else (encoders + share * decoders) / (1 + share)
        return _Split((pairs,), short.encoder_layers)

    def ends(self, whole: Floats, shorts: Sequence[Floats]) -> Floats:
        """Seconds of the ends; NaN where a short model was not measured."""
        weighted = sum(count / self.depth * short for count, short in zip(self.counts, shorts, strict=True))
        return (weighted - whole) / (sum(self.counts) / self.depth - 1)

    def layers(self, whole: Floats, shorts: Sequence[Floats], ends: Floats) -> list[Floats]:
        """Seconds of one layer of each kind; with the ends they add up to the whole."""
        rest = whole - ends
        if len(shorts) == 1:
            return [rest / self.counts[0]]
        even = rest / sum(self.counts)
        parts = [np.where(np.isnan(short), even, np.maximum(short - ends, _LEAST_SHARE * even)) for short in shorts]
        total = sum(count * part for count, part in zip(self.counts, parts, strict=True))
        return [part * rest / total for part in parts]


class _Grids:
    """Medians of samples as arrays over the grid."""

    def __init__(self, points: Sequence[Point], samples: Samples, costs: Overheads) -> None:
        self._seconds: dict[tuple[Call, int | None, int, int], float] = {}
        for point in points:
            times = [_model_s(point.call, sample, costs) for sample in samples.get(point.key, ())]
            if times:
                kind = None if point.cut == "whole" else point.kind
                self._seconds[point.call, kind, point.rows, point.tokens] = _median(times)

    def raw(self, call: Call, axes: Axes, kind: int | None = None) -> Floats:
        """Seconds [rows, tokens] of the whole model, or of the short one of a kind; NaN where nothing was measured."""
        rows, tokens = axes.of(call)
        found = [[self._seconds.get((call, kind, int(r), int(t)), np.nan) for t in tokens] for r in rows]
        return np.array(found, np.float64)

    def marks(self, call: Call, axes: Axes) -> NDArray[np.uint8]:
        return np.where(np.isnan(self.raw(call, axes)), Mark.INTERPOLATED, Mark.MEASURED).astype(np.uint8)


def _model_s(call: Call, sample: Sample, costs: Overheads) -> float:
    """The model's part: of an encode call, or of one iteration of a decode call."""
    if call == "encode":
        return max(_LEAST_SHARE * sample.seconds, sample.seconds - costs.dispatch_s)
    return max(_LEAST_SHARE * sample.seconds, sample.seconds - costs.phase_s) / sample.iterations


def _iteration_s(sample: Sample) -> float:
    return (sample.seconds - sample.single_s) / max(1, sample.iterations - 1)


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values)) if values else 0.0
