"""What a plan was made from: names for people, digests for `exegpt verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from solver.facts import profile_file
from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Workload
from solver.plan.digests import content_digest

# Raised with every change of a formula or a search rule: plans of another version are to be made again.
SOLVER_VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Input:
    """One input: its name, and the sha256 of what it says (`solver.plan.digests`)."""

    name: str
    digest: str


@dataclasses.dataclass(frozen=True)
class ProfileInput:
    """A profile: the model's name in it, its digest, and the device kind that it serves."""

    name: str
    digest: str
    device_kind: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that the planner looked at.

    Attributes:
      model: its shapes, not its weights.
      cluster: the devices that were offered, `--devices` applied.
      devices: how many those are.
      profiles: one per device kind.
      workload: the lengths, and the trace where there is one.
      solver_version: of formulas and search.
    """

    model: Input
    cluster: Input
    devices: int
    profiles: tuple[ProfileInput, ...]
    workload: Input
    solver_version: str


def inputs_of(
    model_name: str, spec: ModelSpec, cluster: Cluster, profiles: Sequence[Profile], workload: Workload
) -> Inputs:
    """Names and digests of these inputs; profiles in the order of their device kinds."""
    return Inputs(
        model=Input(model_name, content_digest(spec)),
        cluster=Input(cluster.name, content_digest(cluster)),
        devices=sum(group.devices for group in cluster.groups),
        profiles=tuple(
            ProfileInput(profile.model, profile_file.digest(profile), profile.device_kind)
            for profile in sorted(profiles, key=lambda profile: profile.device_kind)
        ),
        workload=Input(workload.name, content_digest(workload)),
        solver_version=SOLVER_VERSION,
    )
