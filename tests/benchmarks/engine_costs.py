"""What the engine's own calls cost in an event simulation: every batch in the very buckets that it would run in.

Encode calls are packed as the runner packs them; a decode call takes the rung of rows that holds everybody and the rung
of positions that its longest row reaches. Times are looked up in a Profile. One stage.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.workload import Floats, Ints
from solver.plan.buckets import attended_tokens, round_up
from solver.plan.packing import pack
from solver.plan.plan import Plan
from solver.simulate.events.costs import DecodePhase


@dataclasses.dataclass(frozen=True, eq=False)
class EngineCosts:
    """`solver.simulate.events.costs.Costs` of one stage that runs a plan.

    Attributes:
      profile: of the model.
      spec: its shapes.
      plan: for its buckets.
      most_decode: decode iterations that the runner must allow a row: its max_tokens less the first token.
    """

    profile: Profile
    spec: ModelSpec
    plan: Plan
    most_decode: int
    stages: int = 1
    return_s: float = 0.0

    @property
    def phase_s(self) -> float:
        return self.profile.phase_s

    def encode(self, inputs: Ints, parts: int) -> Floats:
        """float64 [calls, 1]."""
        calls = pack(inputs.tolist(), self.plan.buckets)
        shapes = np.array([(call.rows_bucket, call.tokens_bucket) for call in calls], np.float64)
        seconds = self._whole("encode", shapes[:, 0], shapes[:, 1]) + self.profile.dispatch_s
        return seconds[:, None]

    def decode(self, phase: DecodePhase) -> Floats:
        """float64 [N, 1, 1]."""
        buckets, iterations = self.plan.buckets, len(phase.rows)
        rows = round_up(phase.held, buckets.decode_rows)
        attended = attended_tokens(phase.reach, iterations, rows == buckets.decode_rows[-1], buckets.cache_tokens)
        seconds = self._whole("decode", np.array([float(rows)]), np.array([float(attended)]))
        return np.full((iterations, 1, 1), seconds[0])

    def moved_tokens(self, inputs: Ints) -> int:
        """Positions of the calls; nothing is handed over on one stage."""
        return sum(call.rows_bucket * call.tokens_bucket for call in pack(inputs.tolist(), self.plan.buckets))

    def _whole(self, call: str, rows: Floats, tokens: Floats) -> Floats:
        """All layers and both ends."""
        tensor = self.plan.schedule.stages[0].tensor
        ends = self.profile.end(tensor)
        looked_up = rows * tokens if call == "encode" else rows
        total = ends.head.at(rows, 0.0) + ends.embed.at(looked_up, 0.0)
        for run in self.spec.layers:
            total = total + run.count * getattr(self.profile.layer(tensor, run.kind), call).at(rows, tokens)
        return total
