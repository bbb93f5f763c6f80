"""What passes between the command and its processes: JSON lines, one job in, then a start; results and a report out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.client import Tls
from serving.load.demand import Demand, Lengths, Prompts
from serving.load.results import LoadResult

_FORMS = {"prompts": Prompts, "lengths": Lengths}


@dataclasses.dataclass(frozen=True)
class Job:
    """The share of one process.

    Attributes:
      address, key, tls: as `AsyncClient` takes them.
      demand: of all processes.
      first, step: its requests are number first, first + step, ...
      at_s: open loop: when to send each of its own, in order; None is a closed loop.
      count: closed loop: how many are its own; None is no end.
      concurrency: closed loop: its own requests in flight.
      until_s: closed loop: none begins later.
      warmup: its own requests that are sent, all at once, before the load and are not counted.
      timeout_s: deadline of each request.
      one_call: of GenerateStream for all of them.
    """

    address: str
    key: str | None
    tls: Tls | None
    demand: Demand
    first: int
    step: int
    at_s: Sequence[float] | None
    count: int | None
    concurrency: int
    until_s: float
    warmup: int
    timeout_s: float | None
    one_call: bool


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is kept of one request's result; attributes as of `LoadResult`."""

    index: int
    process: int
    planned_s: float
    sent_s: float
    message_s: Sequence[float]
    message_tokens: Sequence[int]
    prompt_tokens: int
    finish_reason: str | None
    error: str | None
    encode_to_first_s: float
    encode_to_last_s: float

    @property
    def tokens(self) -> int:
        return sum(self.message_tokens)

    @property
    def first_token_s(self) -> float:
        return self.message_s[0] if self.message_s else math.nan

    @property
    def last_token_s(self) -> float:
        return self.message_s[-1] if self.message_s else math.nan


@dataclasses.dataclass(frozen=True)
class ProcessReport:
    """What one process says of itself.

    Attributes:
      cpu_share: seconds of all its threads per second of the load.
      loop_lag_s: how late its loop came back from sleeping, every few milliseconds.
      lost: why it stopped before the end; None where it did not.
    """

    cpu_share: float
    loop_lag_s: Sequence[float]
    lost: str | None


def job_line(job: Job) -> str:
    fields = dataclasses.asdict(job)
    form = next(name for name, kind in _FORMS.items() if isinstance(job.demand, kind))
    return json.dumps({**fields, "demand": {form: fields["demand"]}}, default=str) + "\n"


def parse_job(line: bytes | str) -> Job:
    """Reads `job_line`."""
    fields: dict[str, Any] = json.loads(line)
    ((form, demand),) = fields["demand"].items()
    tls: Mapping[str, str | None] | None = fields["tls"]
    return Job(**{**fields, "demand": _FORMS[form](**demand), "tls": None if tls is None else _tls(tls)})


def _tls(fields: Mapping[str, str | None]) -> Tls:
    files = {name: None if path is None else Path(path) for name, path in fields.items() if name != "server_name"}
    return Tls(**files, server_name=fields["server_name"])


def sample_of(result: LoadResult, process: int) -> Sample:
    return Sample(
        index=result.index,
        process=process,
        planned_s=_round(result.planned_s),
        sent_s=_round(result.sent_s),
        message_s=[_round(value) for value in result.message_s],
        message_tokens=list(result.message_tokens),
        prompt_tokens=result.prompt_tokens,
        finish_reason=result.finish_reason,
        error=result.error,
        encode_to_first_s=_round(result.encode_to_first_s),
        encode_to_last_s=_round(result.encode_to_last_s),
    )


def _round(seconds: float) -> float:
    return round(seconds, 6)


def line(kind: str, *fields: object) -> str:
    """A message of a process; `fields` are a dataclass's, in order."""
    return json.dumps([kind, *fields]) + "\n"


def sample_line(sample: Sample) -> str:
    return line("sample", *vars(sample).values())
