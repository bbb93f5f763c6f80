"""The control variables of a schedule: what the planner decides and the runner executes.

Names follow ExeGPT (ASPLOS 2024): B_E is `encode_batch`, N_D `decode_iterations`, B_D `decode_batch` and B_m
`micro_batch`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from solver.plan.bands import Bands

Policy = Literal["rra", "waa-c", "waa-m", "waa", "static", "dsi", "iteration", "chunked", "disaggregated"]
Role = Literal["encode", "decode", "both"]

POLICIES: tuple[Policy, ...] = get_args(Policy)
# What the Runner runs; those that need stages of two sides come from a plan, the others from flags too.
FLAG_POLICIES: tuple[str, ...] = ("rra", "static", "iteration", "chunked")
EXECUTED_POLICIES: tuple[str, ...] = (*FLAG_POLICIES, "waa-c", "waa-m", "waa")
# B_E follows the planned decode batch.
CORRECTED_POLICIES: tuple[str, ...] = ("rra", "waa-c", "waa-m", "waa")


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """A range of layers on a group of devices.

    Attributes:
      role: which phases run here.
      layers: [first, end) of the model's layers.
      devices: device ids, one per tensor rank.
      tensor: tensor-parallel degree; equals len(devices), since the data axis is 1 inside a stage.
    """

    role: Role
    layers: tuple[int, int]
    devices: tuple[int, ...]
    tensor: int

    def __post_init__(self) -> None:
        if self.tensor != len(self.devices):
            raise ValueError(f"stages: tensor={self.tensor} but {len(self.devices)} devices; give one device per rank")
        if not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError(f"stages: layers={list(self.layers)} is no range [first, end)")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Every control variable of one schedule.

    Attributes:
      policy: how encode and decode phases alternate.
      encode_batch: B_E, requests per encode phase (static: the whole batch).
      decode_iterations: N_D, decode iterations per phase.
      decode_batch: B_D, expected peak rows; the runner corrects B_E to hold it.
      max_rows: rows allocated in the cache.
      stages: where the layers live.
      micro_batch: B_m, rows of one decode micro-batch.
      encode_micro_batch: rows of one encode micro-batch.
      token_budget: chunked only: decode rows plus prompt tokens of one iteration; else 0.
      bands: what the correction of B_E holds phases within; None: half to twice B_E, whatever its tokens.
      encode_replicas, decode_replicas: disaggregated only: pipelines of either side in one copy, each on devices of its
        own; `stages` names those of the first of each, rows are of one decode pipeline.
      held_rows: that are held at once, where more are allocated (`solver.plan.in_place`); None: all.
    """

    policy: Policy
    encode_batch: int
    decode_iterations: int
    decode_batch: int
    max_rows: int
    stages: tuple[StageSpec, ...]
    micro_batch: int
    encode_micro_batch: int
    token_budget: int = 0
    bands: Bands | None = None
    encode_replicas: int = 1
    decode_replicas: int = 1
    held_rows: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy: {self.policy!r} is unknown; choose one of {', '.join(POLICIES)}")
        for name in (
            "encode_batch",
            "decode_iterations",
            "decode_batch",
            "max_rows",
            "micro_batch",
            "encode_micro_batch",
            "encode_replicas",
            "decode_replicas",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
        if self.encode_batch > self.max_rows:
            raise ValueError(
                f"encode_batch: {self.encode_batch} exceeds max_rows={self.max_rows}; lower it or raise max_rows"
            )
        if self.decode_batch > self.max_rows:
            raise ValueError(
                f"decode_batch: {self.decode_batch} exceeds max_rows={self.max_rows}; lower it or raise max_rows"
            )
        if self.held_rows is not None and not self.decode_batch <= self.held_rows <= self.max_rows:
            raise ValueError(
                f"held_rows: {self.held_rows} is not from decode_batch={self.decode_batch} to max_rows={self.max_rows}"
            )
        if (self.policy == "chunked") != (self.token_budget > 0):
            raise ValueError(
                f"token_budget: {self.token_budget} with policy {self.policy}; the chunked policy alone needs one"
            )
        if self.policy != "disaggregated" and (self.encode_replicas, self.decode_replicas) != (1, 1):
            raise ValueError(
                f"encode_replicas, decode_replicas: {self.encode_replicas}, {self.decode_replicas} with policy "
                f"{self.policy}; the disaggregated policy alone has several pipelines of a side"
            )
        if not self.stages:
            raise ValueError("stages: empty; give at least one")

    @property
    def most_rows(self) -> int:
        """Rows that may be held at once."""
        return self.held_rows or self.max_rows
