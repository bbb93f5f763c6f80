"""From what a user names to a load: what is asked (prompts, a workload, a trace) and when (drawn, replayed)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.jsonl import open_input, read_lines
from serving.load import arrivals, demand
from serving.load.demand import Demand, Lengths, Prompts
from solver.facts.raw_log import read_trace
from solver.facts.workload import Floats, Workload
from solver.facts.workload_file import load_workload, of_trace
from solver.simulate.events.arrivals import saturated

DEFAULT_REQUESTS = 1000
_DRAWN_WITHOUT_END = 20_000
"""Lengths drawn for a load that only time ends; they come again behind the last."""


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the flags say; one of `prompt`, `input`, `workload` and `trace`, and `trace` beside the first two for times.

    Attributes:
      columns: of a trace: input tokens, output tokens, arrival.
      rate_rps, burstiness: of drawn arrivals.
      speed: of replayed ones.
      concurrency: in flight, of a closed loop.
      requests, duration_s: the end, whichever comes first.
      parameters: of every request that does not say otherwise.
    """

    prompt: str | None
    input: str | None
    workload: str | None
    trace: str | None
    columns: tuple[str, str, str]
    rate_rps: float | None
    burstiness: float | None
    speed: float | None
    concurrency: int | None
    requests: int | None
    duration_s: float | None
    vocab_size: int
    seed: int
    parameters: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked when.

    Attributes:
      demand: the prompts.
      at_s: float64: when each is sent; None is a closed loop.
      count: of a closed loop; None where time alone ends it.
      until_s: no request begins later.
      title: in words.
    """

    demand: Demand
    at_s: Floats | None
    count: int | None
    until_s: float
    title: str

    @property
    def planned(self) -> int | None:
        """Requests that are to be sent, where that is known before."""
        return self.count if self.at_s is None else len(self.at_s)

    @property
    def rate_rps(self) -> float | None:
        """Mean rate of the times at which requests are sent; None of a closed loop, infinite where all come at once."""
        if self.at_s is None:
            return None
        span_s = float(self.at_s[-1])
        return len(self.at_s) / span_s if span_s > 0 else math.inf

    @property
    def mean_output_tokens(self) -> float | None:
        if isinstance(self.demand, Lengths):
            return sum(self.demand.output_tokens) / len(self.demand.output_tokens)
        return None


def choose(wishes: Wishes) -> Load:
    """Raises ValueError with one line that names the flag."""
    _check(wishes)
    until_s = math.inf if wishes.duration_s is None else wishes.duration_s
    known = None if wishes.trace is None and wishes.workload is None else _workload(wishes)
    if wishes.concurrency is None and wishes.rate_rps is None:
        at_s, asked, title = _replayed(wishes, known)
        at_s = arrivals.cut(at_s, wishes.requests, until_s)
        if not len(at_s):
            raise ValueError(f"duration_s: {wishes.duration_s} ends before the first request; give more")
        return Load(asked, at_s, None, until_s, title)
    asked = _asked(wishes, known)
    default = len(asked.entries) if isinstance(asked, Prompts) and wishes.input else DEFAULT_REQUESTS
    count = wishes.requests or (None if wishes.duration_s else default)
    if wishes.concurrency is not None:
        return Load(asked, None, count, until_s, f"closed loop, {wishes.concurrency} in flight")
    assert wishes.rate_rps is not None
    shape = 1.0 if wishes.burstiness is None else wishes.burstiness
    at_s = arrivals.drawn(wishes.rate_rps, burstiness=shape, seed=wishes.seed, count=count, until_s=until_s)
    if not len(at_s):
        raise ValueError(f"duration_s: {wishes.duration_s} ends before the first request; give more")
    kind = "all at once" if math.isinf(wishes.rate_rps) else "Poisson" if shape == 1 else f"burstiness {shape:g}"
    return Load(asked, at_s, None, until_s, f"open loop, {wishes.rate_rps:g} requests/s, {kind}")


def _check(wishes: Wishes) -> None:
    sources = [name for name in ("prompt", "input", "workload") if getattr(wishes, name) is not None]
    if len(sources) > 1:
        raise ValueError(f"{sources[1]}: given beside --{sources[0]}; leave one out")
    if not sources and wishes.trace is None:
        raise ValueError("prompt: nothing to ask; give --prompt, --input, --workload or --trace")
    if wishes.workload is not None and wishes.trace is not None:
        raise ValueError("trace: given beside --workload; leave one out")
    if wishes.concurrency is not None and wishes.rate_rps is not None:
        raise ValueError("concurrency: given beside --rate; a closed loop has no rate: leave one out")
    paced = wishes.concurrency is not None or wishes.rate_rps is not None
    if not paced and wishes.workload is None and wishes.trace is None:
        raise ValueError("rate: not given; give --rate=REQUESTS_PER_SECOND, --concurrency=N or --trace=FILE")
    if wishes.burstiness is not None and wishes.rate_rps is None:
        raise ValueError("burstiness: given without --rate; leave it out, or draw arrivals with --rate")
    if wishes.speed is not None and paced:
        raise ValueError("speed: is of a replayed trace; leave out --rate and --concurrency, or --speed")
    if wishes.duration_s is not None and not 0 < wishes.duration_s < math.inf:
        raise ValueError(f"duration_s: {wishes.duration_s:g} is no time; give seconds above 0")


def _workload(wishes: Wishes) -> Workload | None:
    """Of --workload, or of the lengths in --trace where these are asked; with its trace."""
    if wishes.workload is not None:
        return load_workload(wishes.workload)
    if wishes.prompt is not None or wishes.input is not None:
        return None
    assert wishes.trace is not None
    inputs, outputs, arrival = wishes.columns
    replayed = wishes.rate_rps is None and wishes.concurrency is None
    trace, _ = read_trace(wishes.trace, inputs, outputs, arrival if replayed else None)
    return of_trace(Path(wishes.trace).name, wishes.trace, trace)


def _replayed(wishes: Wishes, known: Workload | None) -> tuple[Floats, Demand, str]:
    speed = 1.0 if wishes.speed is None else wishes.speed
    if known is None:
        assert wishes.trace is not None
        at_s, asked = arrivals.times_of(wishes.trace, wishes.columns[2]), _asked(wishes, None)
        name = wishes.trace
    else:
        trace, name = known.trace, known.name
        if trace is None or trace.arrival_s is None:
            raise ValueError(
                f"workload: {name} has no arrival times; give --rate=REQUESTS_PER_SECOND or --concurrency=N"
            )
        at_s = trace.arrival_s
        asked = _lengths(wishes, trace.input_tokens.tolist(), trace.output_tokens.tolist())
    return arrivals.compressed(at_s, speed), asked, f"open loop, {name} replayed {speed:g} times as fast"


def _asked(wishes: Wishes, known: Workload | None) -> Demand:
    if wishes.prompt is not None:
        return Prompts([{**wishes.parameters, "prompt": wishes.prompt}])
    if wishes.input is not None:
        return Prompts([{**wishes.parameters, **fields} for fields in _read(wishes.input)])
    assert known is not None
    drawn = saturated(known, wishes.requests or _DRAWN_WITHOUT_END, wishes.seed)
    return _lengths(wishes, drawn.input_tokens.tolist(), drawn.output_tokens.tolist())


def _lengths(wishes: Wishes, inputs: Sequence[int], outputs: Sequence[int]) -> Lengths:
    return Lengths(inputs, outputs, wishes.vocab_size, wishes.seed, wishes.parameters)


def _read(source: str) -> list[dict[str, object]]:
    """Every line of a file for `exegpt generate --input`, checked. Raises ValueError that names file and line."""
    found: list[dict[str, object]] = []
    with open_input(source) as stream:
        for number, line in enumerate(read_lines(stream), start=1):
            try:
                if line.fields is None:
                    raise ValueError(line.error)
                demand.check(line.fields)
            except ValueError as error:
                raise ValueError(f"input: {source}: request {number}: {error}") from None
            found.append(line.fields)
    if not found:
        raise ValueError(f"input: {source} has no requests; give one JSON object a line")
    return found
