"""What a plan expects of a run, to stand beside what is measured; and what each device holds meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Literal

MarkName = Literal["measured", "interpolated", "extrapolated", "estimated"]


@dataclasses.dataclass(frozen=True)
class StagePrediction:
    """One stage's share of the work.

    Attributes:
      encode_s: its encode phase of `encode_batch` prompts, every micro-batch; 0 where it does not encode.
      decode_s: one decode iteration of the mean resident rows, every micro-batch; 0 where it does not decode.
      busy_share: of a period, in which the stage works.
    """

    encode_s: float
    decode_s: float
    busy_share: float


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What the event simulation says of the schedule at saturation, run-time correction included; fields as in
    `Prediction`, percentiles those of requests."""

    throughput_rps: float
    latency_s: float
    ttft_s: float
    tpot_s: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Expected figures; None where nothing was said.

    Attributes:
      throughput_rps: requests per second, over all replicas.
      latency_s: at the plan's percentile, from the start of the encode phase.
      encode_s: one encode phase of `encode_batch` prompts.
      iteration_s: one decode iteration, mean over a phase.
      latency_with_wait_s: the same as `latency_s` from arrival.
      ttft_s, ttft_with_wait_s: time to first token at its percentile, on the same two clocks.
      tpot_s: time per output token at its percentile.
      period_s: from one encode phase to the next.
      decode_phase_s: `decode_iterations` iterations.
      decode_batch: expected peak of resident rows, per replica.
      stages: one per stage of the schedule.
      worst_mark: the least certain kind of number in the profiles that this rests on.
      simulated: where the figures above, which are of the mean phase, were played out.
    """

    throughput_rps: float
    latency_s: float
    encode_s: float
    iteration_s: float
    latency_with_wait_s: float | None = None
    ttft_s: float | None = None
    ttft_with_wait_s: float | None = None
    tpot_s: float | None = None
    period_s: float | None = None
    decode_phase_s: float | None = None
    decode_batch: float | None = None
    stages: tuple[StagePrediction, ...] = ()
    worst_mark: MarkName | None = None
    simulated: Simulated | None = None

    @property
    def expected(self) -> Prediction | Simulated:
        """Whose throughput and latency a run should show."""
        return self.simulated or self


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """Bytes on each device of a stage; the devices of a stage, and of its copies, hold alike.

    Attributes:
      stage: index in the schedule.
      device_kind: of its devices.
      weights_bytes: parameters.
      cache_bytes: keys and values of resident rows, at the plan's quantile.
      payload_bytes: encoded prompts that wait to be handed over or inserted.
      temporary_bytes: what the largest program holds beside these, token counts and collectives included.
      capacity_bytes: of the device.
      usable_bytes: what the plan may fill.
    """

    stage: int
    device_kind: str
    weights_bytes: int
    cache_bytes: int
    payload_bytes: int
    temporary_bytes: int
    capacity_bytes: int
    usable_bytes: int

    def __post_init__(self) -> None:
        if self.head_room_bytes < 0:
            raise ValueError(
                f"memory: stage {self.stage} needs {self.total_bytes} bytes per device but may fill {self.usable_bytes}"
            )

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.payload_bytes + self.temporary_bytes

    @property
    def head_room_bytes(self) -> int:
        return self.usable_bytes - self.total_bytes
