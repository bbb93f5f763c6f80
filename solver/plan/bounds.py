"""The limits that a plan keeps, and at which percentile of requests."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Clock = Literal["encode", "arrival"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Limits in seconds; None where there is none.

    Attributes:
      latency_s: of a request, end to end.
      latency_percentile: of output length, at which `latency_s` holds.
      bound_from: where latency and time to first token begin: "encode", the start of the request's encode phase, or
        "arrival", its wait included.
      ttft_s, ttft_percentile: time to first token, and the percentile of requests at which it holds.
      tpot_s, tpot_percentile: time per output token, (last - first) / (tokens - 1).
    """

    latency_s: float | None = None
    latency_percentile: float = 99.0
    bound_from: Clock = "encode"
    ttft_s: float | None = None
    ttft_percentile: float = 99.0
    tpot_s: float | None = None
    tpot_percentile: float = 99.0

    def __post_init__(self) -> None:
        for name, flag in (("latency_s", "latency_bound_s"), ("ttft_s", "ttft_bound_s"), ("tpot_s", "tpot_bound_s")):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{flag}: {value!r} is no bound; give seconds above 0, or leave it out for none")
        for name in ("latency_percentile", "ttft_percentile", "tpot_percentile"):
            value = getattr(self, name)
            if not 0 < value <= 100:
                raise ValueError(f"{name}: {value!r} is out of range; give a percentile above 0, at most 100")
        if self.bound_from not in ("encode", "arrival"):
            raise ValueError(f"bound_from: {self.bound_from!r} is unknown; choose encode or arrival")
