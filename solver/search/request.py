"""The planner's question and answer: all that decides is in the request, so equal requests give equal bytes."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from solver.facts.cluster import Cluster
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.plan import Plan
from solver.plan.schedule import EXECUTED_POLICIES

USABLE = 0.9


class Infeasible(ValueError):
    """No plan keeps every bound; the text is one line: which limit binds, and the nearest that would do.

    Attributes:
      nearest_latency_s: the least latency bound under which there is a plan; None where that is not what is in the way.
    """

    def __init__(self, line: str, nearest_latency_s: float | None = None) -> None:
        super().__init__(line)
        self.nearest_latency_s = nearest_latency_s


class Progress(Protocol):
    """Told now and then how the search stands; rates in requests per second, None before there are any."""

    def __call__(self, nodes: int, incumbent_rps: float | None, bound_rps: float | None) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class PlanRequest:
    """Everything that a plan depends on.

    Attributes:
      spec, model_name: the model's shapes; its name, for people.
      cluster: devices that may be used.
      profiles: one per device kind of the cluster.
      workload: lengths, and arrivals where its trace has them.
      bounds: what to keep.
      policies: which to search.
      gap: the search ends within this share of the best bound; 0 asks for a proof.
      time_limit_s: ends the search; None: none.
      margin: share by which predictions stay below the bounds; None: the profiles' own spread.
      fluctuation: share by which they stay below besides, for phases differ (`solver.search.second_opinion`).
      dtype, cache_dtype: of weights and activations; of keys and values.
      overflow: share of periods in which residents may exceed the rows allocated.
      usable: share of a device's memory that may be filled.
      max_prompt_tokens, cache_tokens: longest prompt and row taken; None: the workload's.
      cache_layout, compaction, delivery: how the engine that will run the plan keeps rows and hands tokens over.
      node_limit: ends the search of each placement after so many nodes; None: none.
    """

    spec: ModelSpec
    model_name: str
    cluster: Cluster
    profiles: tuple[Profile, ...]
    workload: Workload
    bounds: Bounds
    policies: tuple[str, ...] = EXECUTED_POLICIES
    gap: float = 0.0
    time_limit_s: float | None = None
    margin: float | None = None
    fluctuation: float = 0.0
    dtype: str = "bfloat16"
    cache_dtype: str = "bfloat16"
    overflow: float = 1e-3
    usable: float = USABLE
    max_prompt_tokens: int | None = None
    cache_tokens: int | None = None
    cache_layout: Literal["slots", "paged"] = "slots"
    compaction: Literal["iteration", "phase"] = "phase"
    delivery: Literal["iteration", "phase", "phase+1"] = "phase"
    node_limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Planned:
    """A Plan, and what is logged beside it but never hashed.

    Attributes:
      plan: the answer.
      seconds: the search took.
      trace: (seconds, incumbent, bound) as the search went on; rates in requests per second.
      log: lines for people.
    """

    plan: Plan
    seconds: float
    trace: tuple[tuple[float, float | None, float | None], ...] = ()
    log: tuple[str, ...] = ()
