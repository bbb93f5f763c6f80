"""What the planning commands share: flags that name model, cluster, profiles, workload and bounds, and reading them.

`request_of` turns the flags of `exegpt plan` and `pareto` into a PlanRequest. `inputs_for` finds again what a plan was
made from, by the names in it unless flags say otherwise, for `explain`, `simulate` and `verify`. Neither jax nor grpc
comes in here, and the planner itself only when it is asked.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from absl import flags

from solver.facts import presets
from solver.facts.cluster import Cluster
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.profile_file import check_fits, digest, find_profile, read_profile
from solver.facts.workload import Workload
from solver.facts.workload_file import load_workload
from solver.plan.bounds import Bounds, Clock
from solver.plan.digests import content_digest
from solver.plan.inputs import SOLVER_VERSION
from solver.plan.memory import DTYPE_BYTES
from solver.plan.plan import Plan
from solver.plan.schedule import EXECUTED_POLICIES, POLICIES

if TYPE_CHECKING:
    from solver.search.planner import PlanRequest


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What a plan is made from, read and checked against each other."""

    model_name: str
    spec: ModelSpec
    cluster: Cluster
    profiles: tuple[Profile, ...]
    workload: Workload


def define_inputs(values: flags.FlagValues, *, plan: bool) -> None:
    """`plan`: a plan is given, and names what is not named here."""
    absent = "; the plan's if absent" if plan else ""
    flags.DEFINE_string(
        "model", None, f"model directory, config.json, or preset such as llama-3-8b{absent}", flag_values=values
    )
    flags.DEFINE_string("cluster", None, f"cluster file, or preset such as dgx-a100{absent}", flag_values=values)
    flags.DEFINE_integer("devices", None, f"use the first so many of the cluster{absent}", flag_values=values)
    flags.DEFINE_list(
        "profile", None, "profile files, one for each device kind; looked up by model, device and dtype if absent",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "workload", None, f"workload file or trace, or preset such as paper-t{absent}", flag_values=values
    )


def define_bounds(values: flags.FlagValues, *, latency: bool = True) -> None:
    if latency:
        flags.DEFINE_float(
            "latency_bound_s", None, "limit on a request's latency; inf, or absent: none", flag_values=values
        )
    flags.DEFINE_float(
        "latency_percentile", 99.0, "percentile of output lengths at which latency holds", flag_values=values
    )
    flags.DEFINE_enum(
        "bound_from", None, ("encode", "arrival"),
        "where latency and time to first token begin; arrival where the workload has arrivals, if absent",
        flag_values=values,
    )  # fmt: skip
    for name, text in (("ttft", "time to first token"), ("tpot", "time per output token")):
        flags.DEFINE_float(f"{name}_bound_s", None, f"limit on {text}; none if absent", flag_values=values)
        flags.DEFINE_float(
            f"{name}_percentile", 99.0, f"percentile of requests at which {text} holds", flag_values=values
        )


def define_search(values: flags.FlagValues) -> None:
    flags.DEFINE_list(
        "policies", list(EXECUTED_POLICIES), f"which schedules to search, of {', '.join(POLICIES)}", flag_values=values
    )
    flags.DEFINE_float("gap", 0.0, "end within this share of the proven bound; 0: prove the best", flag_values=values)
    flags.DEFINE_float("time_limit_s", None, "end the search after so long; no limit if absent", flag_values=values)
    flags.DEFINE_float(
        "margin", None, "share by which predictions stay below bounds; the profiles' spread if absent",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "overflow", 1e-3, "share of periods in which residents may exceed the rows allocated", flag_values=values
    )
    for name, text in (("cache_tokens", "positions of a row: the longest prompt plus output that is taken"),
                       ("max_prompt_tokens", "longest prompt that is taken")):  # fmt: skip
        flags.DEFINE_integer(name, None, f"{text}; the workload's longest if absent", 1, flag_values=values)
    for name, text in (("dtype", "of weights; the profile's, else the model's, if absent"),
                       ("cache_dtype", "of keys and values; the profile's if absent")):  # fmt: skip
        flags.DEFINE_enum(name, None, tuple(DTYPE_BYTES), text, flag_values=values)


def request_of(values: flags.FlagValues) -> PlanRequest:
    """What the flags ask for. Raises ValueError with one line that names flag or file, field and value."""
    from solver.search.planner import PlanRequest

    bounds = bounds_of(values)
    policies = _policies(values.policies)
    for name in ("model", "cluster", "workload"):
        if not values[name].value:
            raise ValueError(f"{name}: not given; name a file or a preset with --{name}=..")
    _check_share("gap", values.gap, most=math.inf)
    _check_share("margin", values.margin, most=1.0)
    _check_share("overflow", values.overflow, most=1.0)
    if values.time_limit_s is not None and not values.time_limit_s > 0:
        raise ValueError(f"time_limit_s: {values.time_limit_s} is no time; give seconds above 0")
    facts = _read_facts(values, values.model, values.cluster, values.devices, values.workload)
    if values.bound_from is None and _has_arrivals(facts.workload):
        bounds = dataclasses.replace(bounds, bound_from="arrival")
    dtype = facts.profiles[0].dtype
    return PlanRequest(
        spec=facts.spec,
        model_name=facts.model_name,
        cluster=facts.cluster,
        profiles=facts.profiles,
        workload=facts.workload,
        bounds=bounds,
        policies=policies,
        gap=values.gap,
        time_limit_s=values.time_limit_s,
        margin=values.margin,
        dtype=dtype,
        cache_dtype=values.cache_dtype or facts.profiles[0].cache_dtype,
        overflow=values.overflow,
        max_prompt_tokens=values.max_prompt_tokens,
        cache_tokens=values.cache_tokens,
    )


def bounds_of(values: flags.FlagValues) -> Bounds:
    """Bounds from flags; on the encode clock where --bound_from is absent."""
    given = {"latency": values["latency_bound_s"].value if "latency_bound_s" in values else None}
    given |= {"ttft": values.ttft_bound_s, "tpot": values.tpot_bound_s}
    limits = {name: None if value == math.inf else value for name, value in given.items()}
    return Bounds(
        latency_s=limits["latency"],
        latency_percentile=values.latency_percentile,
        bound_from=cast(Clock, values.bound_from or "encode"),
        ttft_s=limits["ttft"],
        ttft_percentile=values.ttft_percentile,
        tpot_s=limits["tpot"],
        tpot_percentile=values.tpot_percentile,
    )


def inputs_for(plan: Plan, values: flags.FlagValues, *, unchanged: bool = True) -> Facts:
    """What the plan was made from, found by its names where flags are absent.

    Args:
      unchanged: raise where something is no longer what the plan says. False: only for what flags do not name.

    Raises:
      ValueError: something is not found, or not what it was.
    """
    inputs = plan.inputs
    if inputs is None:
        raise ValueError("plan.inputs: null; flags made this plan, so it names nothing to check; run exegpt plan")
    if inputs.solver_version != SOLVER_VERSION:
        raise ValueError(f"plan.inputs.solver_version: {inputs.solver_version!r}, this is {SOLVER_VERSION}; plan again")
    facts = _read_facts(
        values,
        values.model or inputs.model.name,
        values.cluster or inputs.cluster.name.partition("[:")[0],
        values.devices if values.devices is not None or values.cluster else inputs.devices,
        values.workload or inputs.workload.name,
        dtype=plan.dtype,
    )
    found = [
        ("model", inputs.model.digest, content_digest(facts.spec)),
        ("cluster", inputs.cluster.digest, content_digest(facts.cluster)),
        ("workload", inputs.workload.digest, content_digest(facts.workload)),
    ]
    digests = {profile.device_kind: digest(profile) for profile in facts.profiles}
    found += [("profile", given.digest, digests.get(given.device_kind, "none")) for given in inputs.profiles]
    for name, expected, actual in found:
        if expected != actual and (unchanged or not values[name].value):
            raise ValueError(
                f"plan.inputs.{name}: {expected[:12]}.. is not the {name} at hand ({actual[:12]}..); name the one that "
                f"the plan was made from with --{name}=.., or plan again"
            )
    return facts


def model_label(given: str) -> str:
    """A name for people: the preset, or the directory's own."""
    path = Path(given)
    return (path.resolve().name if path.is_dir() else path.stem) if path.exists() else given


def _read_facts(
    values: flags.FlagValues,
    model: str,
    cluster_name: str,
    devices: int | None,
    workload: str,
    dtype: str | None = None,
) -> Facts:
    spec = read_model_spec(presets.find("models", model))
    cluster = load_cluster(cluster_name, devices)
    profiles = _profiles(values, spec, cluster, dtype)
    return Facts(model_label(model), spec, cluster, profiles, load_workload(workload))


def _profiles(values: flags.FlagValues, spec: ModelSpec, cluster: Cluster, dtype: str | None) -> tuple[Profile, ...]:
    """One for each device kind of the cluster, in its order."""
    kinds = list(dict.fromkeys(group.kind for group in cluster.groups))
    given = [read_profile(presets.find("profiles", name)) for name in values.profile or []]
    dtype = (values["dtype"].value if "dtype" in values else None) or dtype or (given[0].dtype if given else spec.dtype)
    by_kind = {profile.device_kind: profile for profile in given}
    found = [by_kind.pop(kind) if kind in by_kind else find_profile(spec, kind, dtype) for kind in kinds]
    for kind in by_kind:
        raise ValueError(f"profile: of device kind {kind}, which the cluster does not have; it has {', '.join(kinds)}")
    for profile, kind in zip(found, kinds, strict=True):
        check_fits(profile, spec, kind, dtype)
    return tuple(found)


def _policies(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: {name!r} is unknown; choose from {', '.join(POLICIES)}")
    if not names:
        raise ValueError(f"policies: none given; choose from {', '.join(POLICIES)}")
    return tuple(dict.fromkeys(names))


def _check_share(name: str, value: float | None, most: float) -> None:
    if value is not None and not 0 <= value < most:
        raise ValueError(f"{name}: {value} is out of range; give a share of at least 0" + (" below 1" * (most == 1)))


def _has_arrivals(workload: Workload) -> bool:
    return workload.trace is not None and workload.trace.arrival_s is not None
