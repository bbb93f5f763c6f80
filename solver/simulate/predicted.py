"""The plan's prediction of each phase that ran, in the shapes that it ran in: the event simulation's own times.

A Timeline asks when somebody reads it. Phases repeat a few shapes, so each is looked up once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from solver.facts.cluster import LEVELS, Cluster, Level
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.plan.plan import Plan
from solver.plan.schedule import StageSpec
from solver.plan.timeline import TimelineEntry
from solver.simulate.events.calls import CallTimes
from solver.simulate.events.clock import Clock
from solver.simulate.from_plan import TOKEN_BYTES, check_alike, level_of

Shape = tuple[int, int]
"""Compiled rows and tokens of an encode call, or rows and attended positions of a decode call."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """A stage of the plan, as `solver.simulate.events.calls.Place` says."""

    kind: str
    tensor: int
    layers: int
    first: bool
    last: bool
    link: Level | None


class PhasePredictor:
    """A `solver.plan.timeline.Predictor` from the profiles that a plan was made from.

    Args:
      plan: its stages, and the kinds of their devices.
      spec: of the model.
      profiles: one for each device kind that the plan uses.
      cluster: what the plan's devices are numbers of; needed where a pipeline has several stages, for its links.

    Raises:
      ValueError: the cluster or the profiles lack what the plan stands on, or they do not tell its stages' times.
    """

    def __init__(self, plan: Plan, spec: ModelSpec, profiles: Sequence[Profile], cluster: Cluster | None) -> None:
        check_alike(plan, spec)
        by_kind = {profile.device_kind: profile for profile in profiles}
        self._times = CallTimes(by_kind, spec, cluster)
        self._phase_s = max(profile.phase_s for profile in profiles)
        stages = plan.schedule.stages
        self._encode = tuple(index for index, stage in enumerate(stages) if stage.role != "decode")
        self._decode = tuple(index for index, stage in enumerate(stages) if stage.role != "encode")
        self._places: dict[int, _Place] = {}
        for indices in (self._encode, self._decode):
            self._places |= _places(plan, indices, by_kind, cluster)
        self._return_s = 0.0
        if len(self._decode) > 1:
            assert cluster is not None, "checked with the places"
            back = _link(stages[self._decode[-1]], stages[self._decode[0]], cluster)
            self._return_s = float(cluster.link(back).transfer_s(TOKEN_BYTES))
        self._encode_s = functools.cache(self._encode_call_s)
        self._decode_s = functools.cache(self._iteration_s)
        self._whole_s = functools.cache(self._whole_phase_s)

    def entry_s(self, entry: TimelineEntry) -> float | None:
        """Calls of an encode entry; iterations of a decode entry, whose first stage also carries what a phase costs
        beside its calls.
        """
        if entry.stage not in self._places or not entry.rows_bucket:
            return None
        if entry.kind == "encode":
            return sum(self._encode_s(entry.stage, *call) for call in _calls(entry))
        if entry.kind == "decode":
            begins = entry.stage == self._decode[0] and entry.micro_batch == entry.iteration == 0
            fixed_s = self._phase_s if begins else 0.0
            return fixed_s + entry.iterations * self._decode_s(entry.stage, entry.rows_bucket, entry.tokens_bucket)
        return None

    def phase_s(self, entries: Sequence[TimelineEntry]) -> float | None:
        """Encode, then decode, each through its stages in micro-batches; side by side where their stages are apart."""
        encoded = [entry for entry in entries if entry.kind == "encode" and entry.stage == self._encode[0]]
        decoded = [entry for entry in entries if entry.kind == "decode" and entry.stage == self._decode[0]]
        if not (encoded or decoded) or not all(entry.rows_bucket for entry in (*encoded, *decoded)):
            return None
        calls = tuple(call for entry in encoded for call in _calls(entry))
        parts = {entry.micro_batch: (entry.rows_bucket, entry.tokens_bucket) for entry in decoded}
        # One entry for all iterations of a micro-batch, or one for each.
        iterations = collections.Counter[int]()
        for entry in decoded:
            iterations[entry.micro_batch] += entry.iterations
        return self._whole_s(calls, tuple(parts.values()), max(iterations.values(), default=0))

    def _whole_phase_s(self, calls: tuple[Shape, ...], parts: tuple[Shape, ...], iterations: int) -> float:
        together = self._encode == self._decode
        encode_s = self._encode_phase_s(calls)
        begin_s = encode_s if together else 0.0
        decode_s = self._decode_phase_s(parts, iterations, begin_s)
        return max(encode_s, decode_s)

    def _encode_phase_s(self, calls: tuple[Shape, ...]) -> float:
        clock = Clock(len(self._encode), 0.0)
        if calls:
            clock.encode(np.array([[self._encode_s(stage, *call) for stage in self._encode] for call in calls]), 0.0)
        return clock.idle_s

    def _decode_phase_s(self, parts: tuple[Shape, ...], iterations: int, begin_s: float) -> float:
        if not parts or not iterations:
            return begin_s
        clock = Clock(len(self._decode), self._return_s, begin_s)
        one = np.array([[self._decode_s(stage, *part) for stage in self._decode] for part in parts])
        ready_s = [begin_s + self._phase_s] * len(parts)
        return float(clock.decode(np.broadcast_to(one, (iterations, *one.shape)), ready_s)[-1].max()) - self._return_s

    def _encode_call_s(self, stage: int, rows: int, tokens: int) -> float:
        place = self._places[stage]
        return self._times.encode_s(place, rows, tokens) + self._times.leave_s(place, rows, rows * tokens)

    def _iteration_s(self, stage: int, rows: int, attended: int) -> float:
        return self._times.decode_s(self._places[stage], rows, attended)


def _calls(entry: TimelineEntry) -> tuple[Shape, ...]:
    return entry.calls or ((entry.rows_bucket, entry.tokens_bucket),)


def _places(
    plan: Plan, indices: Sequence[int], profiles: Mapping[str, Profile], cluster: Cluster | None
) -> dict[int, _Place]:
    """The stages of one pipeline, by their index in the plan."""
    stages, kinds = plan.schedule.stages, {memory.stage: memory.device_kind for memory in plan.memory}
    found = {}
    for at, index in enumerate(indices):
        stage, link = stages[index], None
        if at < len(indices) - 1:
            link = _link(stage, stages[indices[at + 1]], cluster)
        kind = kinds.get(index, next(iter(profiles)))
        if kind not in profiles:
            raise ValueError(f"profile: none for device kind {kind}; give it with --profile")
        profiles[kind].end(stage.tensor)
        layers = stage.layers[1] - stage.layers[0]
        found[index] = _Place(kind, stage.tensor, layers, at == 0, at == len(indices) - 1, link)
    return found


def _link(first: StageSpec, second: StageSpec, cluster: Cluster | None) -> Level:
    """The farthest between any two of their devices."""
    if cluster is None:
        raise ValueError("cluster: needed for the links between stages; name the plan's with --cluster")
    devices, farthest = cluster.devices(), max(*first.devices, *second.devices)
    if farthest >= len(devices):
        raise ValueError(f"stages: device {farthest} is not in cluster {cluster.name}, which has {len(devices)}")
    return max((level_of(devices[a], devices[b]) for a in first.devices for b in second.devices), key=LEVELS.index)
