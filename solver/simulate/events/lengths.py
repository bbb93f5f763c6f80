"""What the very batch costs: from the lengths of its prompts, and in the shapes that the runner would run it in.

`LengthCosts`, for profiles of exact sizes: a batch of mixed prompts is looked up as the uniform batch with its sum of
tokens T (which matrix products cost) and of squares Q (which attention costs): T^2 / Q rows of Q / T tokens.
`BucketCosts`, for profiles of compiled shapes: encode calls are packed and decode calls rounded up by the functions
that the runner uses, `solver.plan.packing` and `solver.plan.buckets`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.buckets import Buckets, attended_tokens, round_up
from solver.plan.packing import pack
from solver.simulate.costs import Pipeline
from solver.simulate.events.calls import CallTimes
from solver.simulate.events.costs import DecodePhase, WorkloadCosts, split


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSource(CallTimes):
    """Where costs of actual batches come from.

    Attributes:
      buckets: the plan's compiled shapes, which a padded profile needs.
    """

    buckets: Buckets | None = None

    def costs(self, pipeline: Pipeline, most_decode: int) -> LengthCosts | BucketCosts:
        """The source for one pipeline; `most_decode`: decode iterations that the runner allows an answer."""
        padded = any(self.profiles[stage.kind].padded for stage in pipeline.stages)
        if not padded:
            return LengthCosts(pipeline, self)
        if self.buckets is None:
            raise ValueError("buckets: a profile of padded shapes needs the plan's")
        return BucketCosts(pipeline, most_decode, self, self.buckets)


class LengthCosts(WorkloadCosts):
    """Encode by the lengths in the batch, decode by rows and context as `WorkloadCosts`."""

    def __init__(self, pipeline: Pipeline, source: BatchSource) -> None:
        super().__init__(pipeline)
        self._source = source

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [parts, stages]: prompts in order of arrival, as many to each part as to the next."""
        ends = np.cumsum(split(len(inputs), parts))
        times = np.zeros((parts, self.stages))
        for part, prompts in enumerate(np.split(inputs.astype(np.float64), ends[:-1])):
            if not len(prompts):
                continue
            tokens, squares = float(prompts.sum()), float(prompts @ prompts)
            for index, stage in enumerate(self.pipeline.stages):
                uniform_s = self._source.encode_s(stage, tokens**2 / squares, squares / tokens)
                times[part, index] = uniform_s + self._source.leave_s(stage, len(prompts), tokens)
        return times


class BucketCosts(WorkloadCosts):
    """Encode calls and decode calls in the shapes that they are compiled for."""

    def __init__(self, pipeline: Pipeline, most_decode: int, source: BatchSource, buckets: Buckets) -> None:
        super().__init__(pipeline)
        self.most_decode = most_decode
        self._source, self._buckets = source, buckets
        self._known_calls: dict[tuple[int, int], list[float]] = {}
        self._known_decodes: dict[tuple[int, int, int], list[float]] = {}

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [calls, stages]; the runner's packing decides how many calls there are."""
        return np.array([self._call_s(rows, tokens) for rows, tokens in self.calls(inputs)])

    def decode(self, phase: DecodePhase) -> Floats:
        """float64 [N, parts, stages]: every iteration computes the whole bucket."""
        rows, attended = self.shape(phase)
        spent = self._decode_s(rows, phase.parts, attended)
        return np.broadcast_to(np.array(spent), (len(phase.rows), phase.parts, self.stages))

    def moved_tokens(self, inputs: Ints) -> int:
        """In the shapes of the calls."""
        return sum(rows * tokens for rows, tokens in self.calls(inputs))

    def shape(self, phase: DecodePhase) -> tuple[int, int]:
        """Rows and attended positions of the decode program that runs."""
        rows = round_up(phase.held, self._buckets.decode_rows)
        whole = rows == self._buckets.decode_rows[-1]
        # The runner lets nobody in whose prompt and answer may exceed a row.
        reach = min(phase.reach, self._buckets.cache_tokens[-1])
        return rows, attended_tokens(reach, phase.dispatched, whole, self._buckets.cache_tokens)

    def calls(self, inputs: Ints) -> list[tuple[int, int]]:
        """Compiled shapes of the calls; a prompt beyond the largest bucket goes alone, in chunks of that."""
        largest = self._buckets.encode_tokens[-1]
        whole = [int(tokens) for tokens in inputs if tokens <= largest]
        calls = [(call.rows_bucket, call.tokens_bucket) for call in pack(whole, self._buckets)]
        return calls + [(1, largest)] * sum(math.ceil(tokens / largest) for tokens in inputs if tokens > largest)

    def _call_s(self, rows: int, tokens: int) -> list[float]:
        key = (rows, tokens)
        if key not in self._known_calls:
            source = self._source
            self._known_calls[key] = [
                source.encode_s(stage, rows, tokens) + source.leave_s(stage, rows, rows * tokens)
                for stage in self.pipeline.stages
            ]
        return self._known_calls[key]

    def _decode_s(self, rows: int, parts: int, attended: int) -> list[float]:
        key = (rows, parts, attended)
        if key not in self._known_decodes:
            self._known_decodes[key] = [
                self._source.decode_s(stage, rows / parts, attended) for stage in self.pipeline.stages
            ]
        return self._known_decodes[key]
