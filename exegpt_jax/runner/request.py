"""What the Runner is asked: a prompt as token ids, how to sample, and until when."""

from __future__ import annotations

import dataclasses

from exegpt_jax.engine.api import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
      id: chosen by who asks; unique among live requests.
      prompt_ids: at least one token.
      sampling: every default resolved.
      arrival_s: when it was asked, on the Runner's clock; None: when it was submitted.
      deadline_s: on the Runner's clock; passed, the row is freed at the next phase boundary.
      generated_ids: output that was already delivered (resume, pre-emption); generation goes on behind it.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    arrival_s: float | None = None
    deadline_s: float | None = None
    generated_ids: tuple[int, ...] = ()
