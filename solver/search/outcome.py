"""What the search of one policy works with and comes to: the best so far, its bound, and how far the search is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from solver.plan.schedule import Policy
from solver.search.proof.branch_and_bound import Found
from solver.search.uniform import Placed
from solver.simulate.points import Points

Report = Callable[[int, float | None, float | None], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The best candidate of a policy.

    Attributes:
      policy: which.
      placed: where its layers live; where encode and decode run apart, the stages of encode and then those of decode.
      points: one candidate's predictions, of one copy.
      encode_micro_batches, decode_micro_batches: m_E and m_D.
      rps: throughput of all copies.
      token_budget: chunked only.
    """

    policy: Policy
    placed: Placed
    points: Points
    encode_micro_batches: int
    decode_micro_batches: int
    rps: float
    token_budget: int = 0


@dataclasses.dataclass(eq=False)
class Tally:
    """How far a search is: nodes and evaluations so far, and when it has to end."""

    began_s: float
    deadline_s: float
    nodes: int = 0
    evaluated: int = 0
    complete: bool = True
    trace: list[tuple[float, float | None, float | None]] = dataclasses.field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def add(self, found: Found) -> None:
        self.nodes += found.nodes
        self.evaluated += found.evaluated
        self.complete &= found.complete

    def note(self, incumbent_rps: float | None, bound_rps: float | None) -> None:
        self.trace.append((time.monotonic() - self.began_s, incumbent_rps, bound_rps))


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What the search of a policy came to.

    Attributes:
      best: None where no placement keeps the limits.
      bound_rps: no placement and candidate that was searched exceeds it; of a tuned sweep, its best.
      proven_over: what the bound covers, for people.
      nearest: where `best` is None, a candidate that comes nearest to the limits, if one was looked at.
      reason: why nothing was searched, where nothing was.
    """

    best: Best | None
    bound_rps: float
    proven_over: str
    nearest: Best | None = None
    reason: str = ""
