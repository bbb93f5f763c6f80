"""What the demo's two processes tell each other: JSON objects, one a line.

The worker says on its standard output what it does; the client asks on the worker's standard input for one schedule
after the other. The load itself goes over gRPC.
"""

from __future__ import annotations

import dataclasses
import json
from typing import IO, Literal

from solver.plan.schedule import Policy

Step = Literal["say", "tuned", "serving", "failed"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a schedule and what it reached in the sweep."""

    policy: Policy
    encode_batch: int
    decode_iterations: int
    requests_per_s: float


@dataclasses.dataclass(frozen=True)
class Message:
    """From the worker.

    Attributes:
      step: "say": a line for the operator; "tuned": the sweep is over; "serving": ready for load; "failed": it ends.
      text: the line; of "serving" the address.
      trials: the sweep, of "tuned".
      chosen: the best trial of each policy, of "tuned".
    """

    step: Step
    text: str = ""
    trials: tuple[Trial, ...] = ()
    chosen: tuple[Trial, ...] = ()

    def send(self, stream: IO[str]) -> None:
        stream.write(json.dumps(dataclasses.asdict(self)) + "\n")
        stream.flush()


def parse(line: str) -> Message:
    fields = json.loads(line)
    trials, chosen = (tuple(Trial(**trial) for trial in fields[name]) for name in ("trials", "chosen"))
    return Message(fields["step"], fields["text"], trials, chosen)
