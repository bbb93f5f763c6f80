"""From a Plan back to machines: the pipelines that its stages form on a cluster, ready for the event simulation.

The planner never comes here: it builds pipelines for candidates. This reads what a plan file says, so that a plan can
be run on another workload, another profile, or by people who did not make it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from solver.facts.cluster import LEVELS, Cluster, Device, Level
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Workload
from solver.plan.plan import Plan
from solver.plan.schedule import StageSpec
from solver.simulate.chunked import whole_prompts
from solver.simulate.costs import Pipeline, PlacedStage, UnitCosts
from solver.simulate.events.simulation import Machines
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.unit_costs import unit_costs

# What one sampled token takes on its way back to the first stage.
TOKEN_BYTES = 4


def machines_of(
    plan: Plan, spec: ModelSpec, cluster: Cluster, profiles: Sequence[Profile], workload: Workload
) -> Machines:
    """The pipelines of one replica, their costs tabulated for `workload`.

    Raises:
      ValueError: a stage stands on devices that the cluster or the profiles do not have, or its times are not told.
    """
    check_alike(plan, spec)
    lengths = lengths_of(workload, spec.first_token)
    builder = _Builder(plan, spec, cluster, profiles, lengths)
    stages = plan.schedule.stages
    encode = [stage for stage in stages if stage.role != "decode"]
    decode = [stage for stage in stages if stage.role != "encode"]
    if encode == decode:
        pipeline = builder.pipeline(encode)
        whole = whole_prompts(lengths.mean_input, lengths.mean_input2)
        return Machines(pipeline, pipeline, lengths.mean_input, whole_prompts=whole)
    found = Machines(builder.pipeline(encode), builder.pipeline(decode), lengths.mean_input)
    busiest = max(stage.layers * stage.unit.cache_token_bytes for stage in found.encode.stages)
    link = cluster.link(builder.level(_devices(encode), _devices(decode)))
    hand_over_s = float(link.transfer_s(busiest * lengths.mean_input))
    return Machines(found.encode, found.decode, lengths.mean_input, hand_over_s)


def check_alike(plan: Plan, spec: ModelSpec) -> None:
    """Raises ValueError where stages do not have layers of the model's mean, which costs are worked out for."""
    stages = plan.schedule.stages
    if spec.encoder_layers and len(stages) > 1:
        raise ValueError(
            f"schedule.stages: {len(stages)} stages of {spec.family}, whose layers are not alike; times are known of 1"
        )


def conditions_of(plan: Plan, percentile: float | None = None) -> Conditions:
    """What the plan is asked to keep, as simulator and closed forms take it."""
    bounds = plan.bounds
    found = Conditions(
        latency_percentile=percentile or (bounds.latency_percentile if bounds is not None else 99.0),
        compaction=plan.compaction,
        delivery=plan.delivery,
        cache_layout=plan.cache_layout,
        cache_tokens=plan.cache_tokens,
    )
    if bounds is None:
        return found
    return dataclasses.replace(
        found,
        ttft_percentile=bounds.ttft_percentile,
        tpot_percentile=bounds.tpot_percentile,
        clock=bounds.bound_from,
        overflow=plan.margins.overflow if plan.margins is not None else found.overflow,
    )


class _Builder:
    """Looks devices, kinds and profiles up, and keeps costs that several stages share."""

    def __init__(
        self, plan: Plan, spec: ModelSpec, cluster: Cluster, profiles: Sequence[Profile], lengths: Lengths
    ) -> None:
        self._spec, self._cluster, self._lengths = spec, cluster, lengths
        self._devices = cluster.devices()
        self._profiles = {profile.device_kind: profile for profile in profiles}
        self._padding = Padding(plan.cache_tokens, plan.max_prompt_tokens)
        schedule = plan.schedule
        chunk = math.ceil(schedule.token_budget / lengths.mean_input)
        self._most_rows = 1 + max(schedule.max_rows, schedule.encode_batch, chunk)
        self._units: dict[tuple[str, int], UnitCosts] = {}

    def pipeline(self, stages: Sequence[StageSpec]) -> Pipeline:
        placed = tuple(
            PlacedStage(
                unit=self._unit(stage),
                layers=stage.layers[1] - stage.layers[0],
                first=index == 0,
                last=index == len(stages) - 1,
                link=None if index == len(stages) - 1 else self.level(stage.devices, stages[index + 1].devices),
            )
            for index, stage in enumerate(stages)
        )
        if len(stages) == 1:
            return Pipeline(placed)
        back = self._cluster.link(self.level(stages[-1].devices, stages[0].devices))
        return Pipeline(placed, return_s=float(back.transfer_s(TOKEN_BYTES)))

    def level(self, first: Sequence[int], second: Sequence[int]) -> Level:
        """The farthest link between any two devices of the groups."""
        ends = [(self._device(a), self._device(b)) for a in first for b in second]
        return max((level_of(a, b) for a, b in ends), key=LEVELS.index)

    def _device(self, number: int) -> Device:
        if not 0 <= number < len(self._devices):
            raise ValueError(
                f"stages: device {number} is not in cluster {self._cluster.name}, which has {len(self._devices)}"
            )
        return self._devices[number]

    def _unit(self, stage: StageSpec) -> UnitCosts:
        kinds = {self._device(number).kind for number in stage.devices}
        if len(kinds) != 1:
            raise ValueError(f"stages: devices {list(stage.devices)} are of kinds {', '.join(sorted(kinds))}; give one")
        kind = kinds.pop()
        if kind not in self._profiles:
            raise ValueError(f"profile: none for device kind {kind}; give it with --profile")
        key = (kind, stage.tensor)
        if key not in self._units:
            profile = self._profiles[kind]
            padding = self._padding if profile.padded else None
            self._units[key] = unit_costs(
                profile, self._spec, self._lengths, self._cluster, stage.tensor, self._most_rows, padding
            )
        return self._units[key]


def level_of(a: Device, b: Device) -> Level:
    """The link between two devices."""
    if a.host != b.host:
        return "pod"
    return "island" if a.island == b.island else "host"


def _devices(stages: Sequence[StageSpec]) -> list[int]:
    return [number for stage in stages for number in stage.devices]
