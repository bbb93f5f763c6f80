"""What a plan proves: how far it can be from the best, what the others reached, and how far facts may move.

Wall time is logged by the planner and stands nowhere here, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from solver.plan.schedule import Policy

Ended = Literal["proven", "node-limited", "time-limited"]
Killer = Literal["slower", "latency", "ttft", "tpot", "memory", "devices", "profile", "unsupported"]

_RELATIVE = 1e-9


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Proof of the search.

    Attributes:
      objective_rps: throughput of the plan, margin applied, as the search counted it.
      best_bound_rps: no candidate of any policy searched exceeds this.
      gap: best_bound_rps / objective_rps - 1.
      allowed_gap: what was asked for; the search ends when `gap` is within it.
      nodes: boxes of (B_E, N_D) and placement problems that were opened.
      evaluated: candidates that were evaluated exactly.
      ended: "proven": gap <= allowed_gap; else which limit came first. A time limit may give another plan next time.
      scope: for people: what was searched, policy by policy; the bound speaks of nothing else.
    """

    objective_rps: float
    best_bound_rps: float
    gap: float
    allowed_gap: float
    nodes: int
    evaluated: int
    ended: Ended
    scope: str = ""

    def __post_init__(self) -> None:
        if not self.objective_rps > 0:
            raise ValueError(f"objective_rps: {self.objective_rps!r} is no throughput; plan again")
        if self.best_bound_rps < self.objective_rps * (1 - _RELATIVE):
            raise ValueError(
                f"best_bound_rps: {self.best_bound_rps!r} is below objective_rps={self.objective_rps!r}; plan again"
            )
        implied = self.best_bound_rps / self.objective_rps - 1
        if not math.isclose(self.gap, implied, rel_tol=1e-6, abs_tol=_RELATIVE):
            raise ValueError(f"gap: {self.gap!r}, but bound and objective give {implied:.6g}; plan again")
        if (self.ended == "proven") != (self.gap <= self.allowed_gap + _RELATIVE):
            raise ValueError(
                f"ended: {self.ended!r} with gap={self.gap!r} and allowed_gap={self.allowed_gap!r}; plan again"
            )

    @classmethod
    def of(
        cls,
        objective_rps: float,
        best_bound_rps: float,
        allowed_gap: float,
        nodes: int,
        evaluated: int,
        limit: Ended,
        scope: str = "",
    ) -> Certificate:
        """Works out the gap. `limit` says what ended the search if it ended short of `allowed_gap`."""
        bound = max(best_bound_rps, objective_rps)
        gap = bound / objective_rps - 1
        ended: Ended = "proven" if gap <= allowed_gap + _RELATIVE else limit
        return cls(objective_rps, bound, gap, allowed_gap, nodes, evaluated, ended, scope)


@dataclasses.dataclass(frozen=True)
class RunnerUp:
    """The best that another policy (or another placement) reached, and why it is not the plan.

    Attributes:
      policy: which.
      killed_by: "slower", the bound that it breaks, or what it lacks.
      reason: one line for people.
      throughput_rps: of its best candidate that keeps every bound; None where there is none.
      latency_s, ttft_s, tpot_s: of that candidate, or where there is none of the one that comes nearest.
      encode_batch, decode_iterations: of the same candidate.
      micro_batch, stages, tensor: its placement in short: rows, how many stages, largest degree.
    """

    policy: Policy
    killed_by: Killer
    reason: str
    throughput_rps: float | None = None
    latency_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    encode_batch: int | None = None
    decode_iterations: int | None = None
    micro_batch: int | None = None
    stages: int | None = None
    tensor: int | None = None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """The controls to change to when the mean output has moved.

    Attributes:
      output_drift: relative change of the mean output: 0.15 is 15% longer.
      encode_batch, decode_iterations: best controls on the same stages; None where no controls keep the bounds. Within
        the margins the plan's rows and programs are enough for them.
      throughput_rps: of these.
      decode_batch: expected peak rows under them; None where none are.
    """

    output_drift: float
    encode_batch: int | None
    decode_iterations: int | None
    throughput_rps: float | None
    decode_batch: int | None = None


@dataclasses.dataclass(frozen=True)
class Margins:
    """How far facts may move before the plan breaks a bound or a device's memory.

    Attributes:
      profile_delta: every time in the profiles may be off by this share, either way.
      output_drift_low, output_drift_high: relative change of the mean output: -0.3 and 0.15 say 30% shorter to 15%
        longer.
      replan_below_tokens, replan_above_tokens: mean output lengths beyond which to plan again.
      overflow: share of periods in which residents may exceed the rows that are allocated.
      neighbours: controls for drifts, worked out beforehand, in rising order.
      mean_input_tokens: planned for; None in plans that do not say.
      input_drift_low, input_drift_high: relative change of the mean input under which the plan's own controls keep
        every bound.
      fluctuation: share by which simulated times exceed those of the mean phase; bounds are lowered by it, too.
    """

    profile_delta: float
    output_drift_low: float
    output_drift_high: float
    replan_below_tokens: float
    replan_above_tokens: float
    overflow: float
    neighbours: tuple[Neighbour, ...] = ()
    mean_input_tokens: float | None = None
    input_drift_low: float = 0.0
    input_drift_high: float = 0.0
    fluctuation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.profile_delta < 1:
            raise ValueError(f"profile_delta: {self.profile_delta!r} is out of range; give a share in [0, 1)")
        if not 0 <= self.fluctuation < 10:
            raise ValueError(f"fluctuation: {self.fluctuation!r} is out of range; plan again")
        for name in ("output_drift", "input_drift"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if not -1 < low <= 0 <= high:
                raise ValueError(f"{name}: [{low!r}, {high!r}] does not hold 0; plan again")

    @property
    def keep(self) -> float:
        """Times of the closed form are kept below the bounds by this factor."""
        return (1 + self.profile_delta) * (1 + self.fluctuation)

    @property
    def mean_output_tokens(self) -> float:
        """Planned for."""
        return self.replan_above_tokens / (1 + self.output_drift_high)
