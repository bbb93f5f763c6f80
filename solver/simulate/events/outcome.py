"""What an event simulation found: moments of every request, and the statistics that people and plans ask for.

Percentiles are order statistics (the smallest value that so many percent of requests do not exceed), as in the closed
form.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from solver.facts.workload import Floats, Ints
from solver.plan.timeline import Timeline
from solver.simulate.points import Conditions


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One simulated run. Requests that ran while a closed loop filled or drained are left out of the arrays.

    Attributes:
      input_tokens, output_tokens: int64 [requests], of those measured.
      arrival_s: float64 [requests]; None at saturation.
      encode_start_s, first_token_s, last_token_s: float64 [requests], on the run's clock, as delivered.
      throughput_rps: requests per second.
      residents_mean, residents_variance: of the rows that decode at the start of a phase.
      phases: measured ones behind these two (iterations, where each is a phase of its own).
      peak_rows: most rows that were held at once.
      peak_tokens: most positions of the cache in use at once.
      deferrals: requests that were wanted and waiting, but stood back at least once because rows or tokens did not fit.
      deferred_phases: phases in which somebody stood back.
      preemptions: requests that were thrown out for want of tokens, to be encoded again.
      busy_share: float64 [stages]: of the whole time; encode stages before decode stages where they are apart.
      timeline: the last entries.
    """

    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None
    encode_start_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    throughput_rps: float
    residents_mean: float
    residents_variance: float
    phases: int
    peak_rows: int
    peak_tokens: int
    deferrals: int
    deferred_phases: int
    preemptions: int
    busy_share: Floats
    timeline: Timeline

    def latencies_s(self, clock: str) -> Floats:
        """float64 [requests]: to the last token, from the start of encoding ("encode") or from arrival."""
        return self.last_token_s - self._start_s(clock)

    def first_tokens_s(self, clock: str) -> Floats:
        """float64 [requests]: to the first token, on the same two clocks."""
        return self.first_token_s - self._start_s(clock)

    @property
    def per_token_s(self) -> Floats:
        """float64: (last - first) / (tokens - 1) of every request with two tokens or more."""
        several = self.output_tokens > 1
        spent = self.last_token_s[several] - self.first_token_s[several]
        return spent / (self.output_tokens[several] - 1)

    def latency_s(self, conditions: Conditions) -> float:
        """At the conditions' percentile (of requests) and clock."""
        return percentile(self.latencies_s(conditions.clock), conditions.latency_percentile)

    def ttft_s(self, conditions: Conditions) -> float:
        return percentile(self.first_tokens_s(conditions.clock), conditions.ttft_percentile)

    def tpot_s(self, conditions: Conditions) -> float:
        return percentile(self.per_token_s, conditions.tpot_percentile)

    def latency_of_output_s(self, output_tokens: int, clock: str = "encode") -> float:
        """Mean latency of the requests with exactly this output; nan where there is none."""
        same = self.output_tokens == output_tokens
        return float(self.latencies_s(clock)[same].mean()) if same.any() else float("nan")

    def _start_s(self, clock: str) -> Floats:
        if clock == "encode":
            return self.encode_start_s
        if self.arrival_s is None:
            raise ValueError("clock: 'arrival' at saturation, where waits grow without end; give a rate or a trace")
        return self.arrival_s


def percentile(values: Floats, percent: float) -> float:
    """The smallest of `values` that `percent` of them do not exceed; 0 of none."""
    if not len(values):
        return 0.0
    return float(np.percentile(values, percent, method="inverted_cdf"))


def merged(outcomes: tuple[Outcome, ...]) -> Outcome:
    """Replicas side by side: requests together, rates added, peaks of the fullest, shares of the first."""
    first = outcomes[0]
    if len(outcomes) == 1:
        return first

    def together(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(outcome, name) for outcome in outcomes])

    weights = np.array([outcome.phases for outcome in outcomes], np.float64)
    return dataclasses.replace(
        first,
        input_tokens=together("input_tokens").astype(np.int64),
        output_tokens=together("output_tokens").astype(np.int64),
        arrival_s=None if first.arrival_s is None else together("arrival_s"),
        encode_start_s=together("encode_start_s"),
        first_token_s=together("first_token_s"),
        last_token_s=together("last_token_s"),
        throughput_rps=sum(outcome.throughput_rps for outcome in outcomes),
        residents_mean=float(np.average([outcome.residents_mean for outcome in outcomes], weights=weights)),
        residents_variance=float(np.average([outcome.residents_variance for outcome in outcomes], weights=weights)),
        phases=sum(outcome.phases for outcome in outcomes),
        peak_rows=max(outcome.peak_rows for outcome in outcomes),
        peak_tokens=max(outcome.peak_tokens for outcome in outcomes),
        deferrals=sum(outcome.deferrals for outcome in outcomes),
        deferred_phases=sum(outcome.deferred_phases for outcome in outcomes),
        preemptions=sum(outcome.preemptions for outcome in outcomes),
    )
