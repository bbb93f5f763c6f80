"""Bounds on whole boxes of candidates [B0, B1] x [N0, N1], from a profile of any shape (scheduling.md, 2.6).

For every box: a throughput that no candidate exceeds, and latency, time to first token, time per output token and
memory that none undercuts. Nothing is assumed monotone. Two kinds of bounds on the sum of decode times are taken and
the better one counts: the least times over the rows and contexts that a box can reach, segment by segment of the phase,
and straight lines below the profile, summed by the conserved numbers of iterations, rows and tokens. All are evaluated
for many boxes at once; `proof.branch_and_bound` asks for them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.search.proof.boxes import BoxBounds, Boxes
from solver.search.proof.floors import Floors
from solver.search.proof.hulls import best_line, context_slope, lines_in_context
from solver.search.proof.phase_shapes import SEGMENTS, PhaseShapes, ShapeRanges, phase_shapes
from solver.search.proof.range_minimum import RangeMinimum
from solver.simulate.lengths import Lengths
from solver.simulate.points import Conditions
from solver.simulate.quantiles import normal_quantile

# Sums of thousands of rounded numbers agree to about 1e-13; bounds keep this distance, relative.
ROUNDING = 1e-10
# Quantiles are taken at a share that is smaller by this.
SHARE_ROUNDING = 2e-9
# Lengths are grouped for time per output token; a group counts as its best member could.
LENGTH_GROUPS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class _Reached:
    """Least values over the rows and contexts that a segment can reach: float64 [boxes, segments].

    Attributes:
      times_s: T_D.
      rest_s: T_D - slope x rows x context: what remains once the sum of tokens is accounted for.
      per_row_s: T_D / n.
    """

    times_s: Floats
    rest_s: Floats
    per_row_s: Floats


class RraBounds:
    """Bounds of alternating phases on `floors`, for N up to `most_iterations`."""

    def __init__(self, floors: Floors, lengths: Lengths, conditions: Conditions, most_iterations: int) -> None:
        self._shapes: PhaseShapes = phase_shapes(lengths, conditions, most_iterations)
        self._first_token = lengths.first_token
        self._delivery, self._clock = conditions.delivery, conditions.clock
        self._ttft_share = conditions.ttft_percentile / 100
        self._memory, self._overflow_z = floors.memory, normal_quantile(1 - conditions.overflow)
        self._most_encode, self._most_rows = floors.most_encode, floors.most_rows
        batches = np.arange(1, floors.most_encode + 1)
        encode = floors.encode_s[1:]
        self._encode = RangeMinimum(np.stack([encode, encode / batches], axis=1))
        contexts, decode = _reach(floors, self._shapes)
        self._contexts = contexts
        rows = np.maximum(1, np.arange(floors.most_rows + 1))
        per_row = decode / rows
        per_row[:, 0] = per_row[:, 1]  # below one row T_D(n) / n is no less than at one
        self._slope = context_slope(contexts, decode, floors.most_rows // 2)
        rest = decode - self._slope * contexts[:, None] * np.arange(floors.most_rows + 1)
        self._table = np.concatenate([decode, rest]).T.copy()
        self._per_row_at_one = per_row[:, 1]
        self._decode = RangeMinimum(np.concatenate([decode, rest, per_row]).T)
        self._drain = RangeMinimum(floors.drain_s.min(axis=0))
        self._lines = lines_in_context(contexts, decode)
        self._lengths = _grouped(lengths, conditions.tpot_percentile)

    def bound(self, boxes: Boxes, with_tpot: bool) -> BoxBounds:
        """Bounds of every box; `with_tpot` takes about as long as all the rest."""
        b0, b1 = boxes.first_low, boxes.first_high
        shape = self._shapes.over(boxes.second_low, boxes.second_high)
        encode = self._encode.least(np.minimum(b0, self._most_encode) - 1, np.minimum(b1, self._most_encode) - 1)
        reached, drain_s = self._reached(boxes, shape)
        times = reached.times_s
        decode_share = self._phase_share(boxes, shape, reached)
        request_s = encode[:, 1] + decode_share + drain_s / b1
        waited_s = self._waited(boxes, shape, reached)
        latency_s = shape.encodes_low * encode[:, 0] + shape.drains_low * drain_s + waited_s
        ttft_s = encode[:, 0] + self._to_first_token(boxes, times, drain_s)
        if self._clock == "arrival":
            # Latency keeps its bound: waits are not negative.
            ttft_s = ttft_s + self._ttft_share * (encode[:, 0] + boxes.first_low * decode_share + drain_s)
        tpot_s = self._tpot(boxes, encode[:, 0], times, drain_s) if with_tpot else np.zeros(len(boxes))
        return BoxBounds(
            throughput_rps=(1 + ROUNDING) / request_s,
            latency_s=(1 - ROUNDING) * latency_s,
            ttft_s=(1 - ROUNDING) * ttft_s,
            tpot_s=(1 - ROUNDING) * tpot_s,
            memory_share=self._memory_share(boxes, shape),
        )

    def _reached(self, boxes: Boxes, shape: ShapeRanges) -> tuple[_Reached, Floats]:
        """Least of what each segment can reach, and the least drain [boxes]."""
        most = float(self._most_rows)
        low = np.minimum(boxes.first_low[:, None] * shape.rows_low * (1 - ROUNDING), most)
        high = np.clip(boxes.first_high[:, None] * shape.rows_high * (1 + ROUNDING), low, most)
        # Straight between whole rows, so the least is at one of them or at an end; likewise for T_D / n.
        first, last = np.ceil(low).astype(np.int64), np.floor(high).astype(np.int64)
        least = self._decode.least(np.minimum(first, last), last)
        least = np.where((first <= last)[..., None], least, np.inf)
        least = np.minimum(np.minimum(least, self._at_rows(low)), self._at_rows(high))
        both = least.reshape(*least.shape[:2], 3, len(self._contexts))
        both = _over_contexts(both, self._contexts, shape.context_low[..., None], shape.context_high[..., None])
        whole = np.floor(low[:, -1]).astype(np.int64), np.ceil(high[:, 0]).astype(np.int64)
        return _Reached(both[..., 0], both[..., 1], both[..., 2]), self._drain.least(*whole)

    def _at_rows(self, rows: Floats) -> Floats:
        """What `_decode` holds, at fractional rows [boxes, segments, 3 knots]; below one row T_D / n is as at one."""
        below = np.minimum(rows.astype(np.int64), self._most_rows - 1)
        part = (rows - below)[..., None]
        seconds = self._table[below] * (1 - part) + self._table[below + 1] * part
        times = seconds[..., : len(self._contexts)]
        per_row = np.where(rows[..., None] >= 1, times / np.maximum(rows, 1)[..., None], self._per_row_at_one)
        return np.concatenate([seconds, per_row], axis=-1)

    def _phase_share(self, boxes: Boxes, shape: ShapeRanges, reached: _Reached) -> Floats:
        """Decode time per request: sum over the phase divided by B_E."""
        n0, n1 = boxes.second_low, boxes.second_high
        b0, b1 = boxes.first_low, boxes.first_high
        least, most = (n0 / b1 / SEGMENTS)[:, None], (n1 / b0 / SEGMENTS)[:, None]
        by_rest = np.where(reached.rest_s >= 0, least, most) * reached.rest_s + self._slope * shape.segment_tokens_low
        segments = np.maximum(least * reached.times_s, shape.segment_rows_low * reached.per_row_s)
        total = np.maximum(segments, by_rest).sum(axis=1)
        total = np.maximum(total, shape.phase_rows_low * reached.per_row_s.min(axis=1))
        lines = best_line(
            self._lines,
            (n0 / b1, n1 / b0),
            (shape.phase_rows_low, shape.phase_rows_high),
            shape.phase_tokens_low,
        )
        return np.maximum(total, lines)

    def _waited(self, boxes: Boxes, shape: ShapeRanges, reached: _Reached) -> Floats:
        """Decode time that the bound's percentile of length waits for."""
        times = reached.times_s
        tokens = self._slope * boxes.first_low[:, None] * shape.waited_tokens_low
        by_rest = np.where(reached.rest_s >= 0, shape.waited_share_low * reached.rest_s + tokens, 0.0)
        segments = np.maximum(shape.waited_share_low * times, by_rest).sum(axis=1)
        total = np.maximum(segments, shape.latency_iterations_low * times.min(axis=1))
        lines = best_line(
            self._lines,
            (shape.latency_iterations_low, shape.latency_iterations_high),
            (boxes.first_low * shape.latency_rows_low, boxes.first_high * shape.latency_rows_high),
            boxes.first_low * shape.latency_tokens_low,
        )
        return np.maximum(total, lines)

    def _to_first_token(self, boxes: Boxes, times: Floats, drain_s: Floats) -> Floats:
        """From the end of the encode phase to the first token."""
        if self._first_token == "encode":
            return np.zeros(len(boxes))
        if self._delivery == "iteration":
            return times[:, 0] + drain_s
        return boxes.second_low / SEGMENTS * times.sum(axis=1) + drain_s

    def _tpot(self, boxes: Boxes, encode_s: Floats, times: Floats, drain_s: Floats) -> Floats:
        """Quantile, over requests, of what each length takes at least per token (2.6 j)."""
        decode, steps, weight, share = self._lengths
        if not len(decode):
            return np.zeros(len(boxes))
        phases = -(-decode // boxes.second_high[:, None]) - 1.0  # whole ones before the last token's
        least = times.min(axis=1)
        # Of the iterations of a whole phase the mean is bounded, of the rest the least.
        whole_s = boxes.second_low * (times.sum(axis=1) / SEGMENTS - least)
        if self._first_token == "encode":
            drained = (phases + 1) * drain_s[:, None]
            span = phases * (encode_s + whole_s)[:, None] + decode * least[:, None] + drained
        elif self._delivery == "iteration":
            # The first token's time contains its own iteration and a drain, which is no longer than that iteration.
            span = np.where(phases > 0, phases * encode_s[:, None] + (decode - 2) * least[:, None], 0.0)
        else:
            whole_s = whole_s + boxes.second_low * least + drain_s
            span = phases * (encode_s + whole_s)[:, None]
        per_token = span / steps
        order = np.argsort(per_token, axis=1)
        below = np.cumsum(weight[order], axis=1)
        at = np.minimum((below < share - SHARE_ROUNDING).sum(axis=1), len(decode) - 1)
        return np.take_along_axis(per_token, np.take_along_axis(order, at[:, None], 1), 1)[:, 0]

    def _memory_share(self, boxes: Boxes, shape: ShapeRanges) -> Floats:
        b0 = boxes.first_low.astype(np.float64)
        peak = b0 * shape.peak_low * (1 - ROUNDING)
        share = np.zeros(len(boxes))
        if self._memory is not None:
            z = self._overflow_z
            deviation = np.sqrt(np.maximum(0.0, b0 * shape.held_variance_low - ROUNDING))
            quantile = np.ceil(b0 * shape.held_low + z * deviation + shape.held_skew_low - 0.5 - 2e-9)
            fewest = np.maximum(b0, np.ceil(b0 * shape.held_low - 2e-9))
            rows = np.clip(quantile, fewest, np.maximum(fewest, b0 * shape.held_most_low))
            tokens = b0 * shape.tokens_low + z * np.sqrt(np.maximum(0.0, b0 * shape.tokens_variance_low))
            share = self._memory.share(rows, tokens * (1 - ROUNDING), b0) * (1 - ROUNDING)
        return np.where((peak > self._most_rows) | (b0 > self._most_encode), np.inf, share)


def _reach(floors: Floors, shapes: PhaseShapes) -> tuple[Floats, Floats]:
    """Knots and decode table, widened to every context that occurs: beyond its knots a profile is constant."""
    knots, table = floors.contexts, floors.decode_s
    if shapes.least_context < knots[0]:
        knots, table = np.append(shapes.least_context, knots), np.concatenate([table[:1], table])
    if shapes.most_context > knots[-1]:
        knots, table = np.append(knots, shapes.most_context), np.concatenate([table, table[-1:]])
    return knots, table


def _over_contexts(values: Floats, knots: Floats, low: Floats, high: Floats) -> Floats:
    """float64 [...]: least of `values` [..., knots], straight between knots, over contexts low .. high."""
    if len(knots) == 1:
        return values[..., 0]
    least = np.minimum(_at_context(values, knots, low), _at_context(values, knots, high))
    inside = (knots > low[..., None]) & (knots < high[..., None])
    return np.minimum(least, np.where(inside, values, np.inf).min(axis=-1))


def _at_context(values: Floats, knots: Floats, context: Floats) -> Floats:
    below = np.clip(np.searchsorted(knots, context, side="right") - 1, 0, len(knots) - 2)
    part = np.clip((context - knots[below]) / (knots[below + 1] - knots[below]), 0.0, 1.0)
    below = np.broadcast_to(below, values.shape[:-1])[..., None]
    low, high = np.take_along_axis(values, below, -1), np.take_along_axis(values, below + 1, -1)
    return low[..., 0] * (1 - part) + high[..., 0] * part


def _grouped(lengths: Lengths, percentile: float) -> tuple[Ints, Ints, Floats, float]:
    """Decode iterations (shortest of a group), tokens after the first (longest), weights, and the share asked for."""
    after = lengths.workload.output_tokens - 1
    kept = after >= 1
    if not kept.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0.0
    weights = np.bincount(after[kept], weights=lengths.workload.probability[kept])
    tokens = np.flatnonzero(weights)
    starts = np.unique(np.linspace(0, len(tokens), min(len(tokens), LENGTH_GROUPS), endpoint=False).astype(np.int64))
    ends = np.append(starts[1:], len(tokens)) - 1
    first_decode = 0 if lengths.first_token == "encode" else 1
    weight = np.add.reduceat(weights[tokens], starts)
    return tokens[starts] + first_decode, tokens[ends], weight / weight.sum(), percentile / 100
