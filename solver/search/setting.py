"""A request worked out: costs by device kind and degree, limits with their margin, how bytes are counted.

Made once per request (and once more for each workload drift that the margins look at); every policy's search reads it.
"""

from __future__ import annotations

import dataclasses
import math

from solver.facts.cluster import Cluster
from solver.facts.profile import Profile
from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.plan import longest_whole_prompt
from solver.search.placement.pools import Pool, check_degrees, pools_of
from solver.search.proof.limits import Limits
from solver.search.request import PlanRequest
from solver.simulate.costs import UnitCosts
from solver.simulate.lengths import Lengths, lengths_of
from solver.simulate.memory import MemoryModel, cache_token_bytes
from solver.simulate.padding import Padding
from solver.simulate.points import Conditions
from solver.simulate.unit_costs import unit_costs

# Costs are tabulated for so many rows of a micro-batch, less where memory holds less.
MOST_ROWS, LEAST_MOST_ROWS = 4096, 32
# Longer decode phases are not tried: tokens would come in lumps of this many.
MOST_ITERATIONS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What the searches share.

    Attributes:
      request: the question.
      workload, lengths: whose traffic; the request's, or one that has drifted.
      conditions: percentiles, clock, compaction, delivery, layout.
      limits: times with the margin taken off; memory comes with a placement.
      margin: share taken off.
      padding: shapes of programs, where the profiles are of padded shapes.
      memory: how bytes are counted.
      units: by (device kind, tensor degree).
      pools: devices that are alike.
      rate_rps: mean arrival rate, where waits count.
    """

    request: PlanRequest
    workload: Workload
    lengths: Lengths
    conditions: Conditions
    limits: Limits
    margin: float
    padding: Padding | None
    memory: MemoryModel
    units: dict[tuple[str, int], UnitCosts]
    pools: tuple[Pool, ...]
    rate_rps: float | None

    @property
    def cluster(self) -> Cluster:
        return self.request.cluster

    @property
    def layers(self) -> int:
        return self.request.spec.num_layers

    @property
    def most_stages(self) -> int:
        """Of a pipeline that is searched: models with an encoder are not cut, since their layers are not alike."""
        return 1 if self.request.spec.encoder_layers else self.layers

    @property
    def keep(self) -> float:
        """Times are kept below the bounds by this factor."""
        return (1 + self.margin) * (1 + self.request.fluctuation)

    @property
    def most_iterations(self) -> int:
        """N_D is sought up to here."""
        return max(1, min(self.lengths.most_decode, MOST_ITERATIONS))

    @property
    def most_rows(self) -> int:
        return next(iter(self.units.values())).most_rows

    def usable_bytes(self, kind: str) -> float:
        return self.request.usable * self.cluster.kind(kind).memory_bytes

    def degrees(self, pool: Pool) -> tuple[int, ...]:
        """Tensor degrees that the pool's islands hold and its profile has."""
        return tuple(tensor for kind, tensor in self.units if kind == pool.kind and tensor <= pool.island_size)


def limits_of(bounds: Bounds, margin: float, fluctuation: float) -> Limits:
    """The bounds, both shares taken off."""
    limits = Limits(_or_none(bounds.latency_s), _or_none(bounds.ttft_s), _or_none(bounds.tpot_s))
    return limits.within((1 + margin) * (1 + fluctuation) - 1)


def make_setting(request: PlanRequest, workload: Workload | None = None) -> Setting:
    """Works a request out.

    Raises:
      ValueError: profiles, workload and model do not fit together.
    """
    planned, workload = request.workload, workload or request.workload
    spec = request.spec
    cache_tokens = request.cache_tokens or min(planned.most_tokens, spec.max_positions)
    if cache_tokens > spec.max_positions:
        raise ValueError(f"cache_tokens: {cache_tokens} exceeds the model's {spec.max_positions} positions; lower it")
    if planned.most_tokens > cache_tokens:
        raise ValueError(
            f"workload: {planned.name} has requests of {planned.most_tokens} tokens, rows hold "
            f"{cache_tokens}; fit it with shorter --input_max and --output_max, or take a model with more positions"
        )
    if planned.most_input > longest_whole_prompt(spec):
        raise ValueError(
            f"workload: {planned.name} has prompts of {planned.most_input} tokens, the encoder of {spec.family} reads "
            f"at most {longest_whole_prompt(spec)} at once; fit it with a shorter --input_max"
        )
    wanted = request.max_prompt_tokens or planned.most_input
    max_prompt_tokens = min(wanted, cache_tokens - 1, longest_whole_prompt(spec))
    lengths = lengths_of(workload, spec.first_token)
    profiles = {profile.device_kind: profile for profile in request.profiles}
    padded = any(profile.padded for profile in request.profiles)
    padding = Padding(cache_tokens, max_prompt_tokens) if padded else None
    pools = pools_of(request.cluster)
    bounds = request.bounds
    margin = request.margin if request.margin is not None else max(p.spread for p in request.profiles)
    most_rows = _most_rows(request, cache_tokens, lengths)
    return Setting(
        request=request,
        workload=workload,
        lengths=lengths,
        conditions=Conditions(
            latency_percentile=bounds.latency_percentile,
            ttft_percentile=bounds.ttft_percentile,
            tpot_percentile=bounds.tpot_percentile,
            clock=bounds.bound_from,
            compaction=request.compaction,
            delivery=request.delivery,
            cache_layout=request.cache_layout,
            cache_tokens=cache_tokens,
            overflow=request.overflow,
        ),
        limits=limits_of(bounds, margin, request.fluctuation),
        margin=margin,
        padding=padding,
        memory=MemoryModel(spec, request.dtype, request.cache_dtype, cache_tokens, max_prompt_tokens),
        units=_units(request, profiles, pools, lengths, most_rows, padding),
        pools=pools,
        rate_rps=_rate_rps(request),
    )


def _units(
    request: PlanRequest,
    profiles: dict[str, Profile],
    pools: tuple[Pool, ...],
    lengths: Lengths,
    most_rows: int,
    padding: Padding | None,
) -> dict[tuple[str, int], UnitCosts]:
    units = {}
    for pool in pools:
        profile = profiles[pool.kind]
        fitting = tuple(degree for degree in profile.tensor_degrees if degree <= pool.island_size)
        if not fitting:
            raise ValueError(
                f"profile: {profile.model} on {pool.kind} has tensor degrees {list(profile.tensor_degrees)}, islands "
                f"have {pool.island_size}; profile a degree that fits"
            )
        check_degrees(pool, fitting)
        for degree in fitting:
            units[pool.kind, degree] = unit_costs(
                profile, request.spec, lengths, request.cluster, degree, most_rows, padding
            )
    return units


def _or_none(bound_s: float | None) -> float:
    return math.inf if bound_s is None else bound_s


def _most_rows(request: PlanRequest, cache_tokens: int, lengths: Lengths) -> int:
    """Rows whose cache all devices together could hold, were there no weights; no more than a padded profile timed.

    Programs of padded shapes run at their own sizes, so a straight line beyond the largest says nothing.
    """
    timed = [int(times.decode.first[-1]) for p in request.profiles if p.padded for times in p.layers]
    whole = sum(request.usable * d.memory_bytes * request.cluster.count(d.name) for d in request.cluster.kinds)
    per_token = cache_token_bytes(request.spec, 1, request.cache_dtype) * request.spec.num_layers
    tokens = cache_tokens if request.cache_layout == "slots" else lengths.mean_input
    return int(min(MOST_ROWS, *timed, max(LEAST_MOST_ROWS, whole / (per_token * tokens))))


def _rate_rps(request: PlanRequest) -> float | None:
    """Mean arrival rate of the workload's trace; needed where bounds count from arrival."""
    if request.bounds.bound_from != "arrival":
        return None
    trace = request.workload.trace
    if trace is None or trace.arrival_s is None or trace.arrival_s[-1] <= trace.arrival_s[0]:
        raise ValueError(
            f"bound_from: arrival, but workload {request.workload.name} tells no arrivals; use --bound_from=encode"
        )
    return float((len(trace.arrival_s) - 1) / (trace.arrival_s[-1] - trace.arrival_s[0]))
