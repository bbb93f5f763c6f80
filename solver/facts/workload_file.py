"""The file of a Workload: strict, versioned JSON in one of three forms, and from there to the joint distribution.

`moments` (a truncated normal each for input and output, ExeGPT's tasks), `pairs` (a joint histogram) or `trace`
(requests in order, with arrival times where they are known). `exegpt fit` writes it; presets stand in
`configs/workloads`. Raw logs of others are read by `solver.facts.raw_log`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from solver.facts import presets
from solver.facts.copula import joint_pmf
from solver.facts.histogram import Histogram, histogram, joint, within
from solver.facts.rows import STANDARD
from solver.facts.truncated_normal import MOST_TOKENS, Moments, lengths_pmf
from solver.facts.workload import Floats, Ints, Trace, Workload, merge
from solver.plan import strict_json

SCHEMA_VERSION = 1
_NUMBERS_A_LINE = 20


@dataclasses.dataclass(frozen=True)
class MomentsForm:
    """Truncated normals with a correlation between the lengths (`solver.facts.copula`)."""

    input: Moments
    output: Moments
    correlation: float = 0.0


@dataclasses.dataclass(frozen=True)
class PairsForm:
    """A joint histogram: pair p was seen, or is to weigh, `count[p]` times; without `count` once each."""

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    count: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TraceForm:
    """Requests in order; `arrival_s` from the first request on, not falling, or null."""

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    arrival_s: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class WorkloadFile:
    """What the file says; exactly one of the three forms is given.

    Attributes:
      name: for people.
      source, licence: where the numbers come from, and on which terms, attribution included.
    """

    schema_version: int
    name: str
    source: str
    licence: str
    moments: MomentsForm | None = None
    pairs: PairsForm | None = None
    trace: TraceForm | None = None

    def __post_init__(self) -> None:
        given = [form for form in ("moments", "pairs", "trace") if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(f"{', '.join(given) or 'no form'} given; give one of moments, pairs, trace")


def load_workload(given: str) -> Workload:
    """The workload that a flag names: a file, a preset, or `-` for standard input.

    Raises:
      ValueError: one line that names file, field and value.
    """
    return workload_of(load_file(given))


def load_file(given: str) -> WorkloadFile:
    """The same before the joint distribution is made, with its terms."""
    if given == STANDARD:
        return parse(sys.stdin.read(), "standard input")
    return read_file(presets.find("workloads", given))


def read_file(path: Path) -> WorkloadFile:
    """Raises ValueError with one line that names file, field and value; OSError where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text; make a workload file with exegpt fit") from None
    return parse(text, str(path))


def parse(text: str, what: str) -> WorkloadFile:
    """Reads `to_text`. Raises ValueError with one line that begins with `what`."""
    if not text.strip():
        raise ValueError(f"{what}: is empty; make a workload file with exegpt fit")
    if not text.lstrip().startswith("{"):
        raise ValueError(f"{what}: is no workload file; make one from it with exegpt fit --trace={what}")
    found = strict_json.from_json(WorkloadFile, text, what)
    if found.schema_version != SCHEMA_VERSION:
        raise ValueError(f"{what}.schema_version: {found.schema_version} is not {SCHEMA_VERSION}; run exegpt fit again")
    for form in (found.pairs, found.trace):
        if form is not None:
            _check_columns(form, f"{what}.{'pairs' if form is found.pairs else 'trace'}")
    return found


def _check_columns(form: PairsForm | TraceForm, where: str) -> None:
    """Columns of equal number, lengths in range, counts positive, arrivals from 0 on and not falling."""
    extra = form.count if isinstance(form, PairsForm) else form.arrival_s
    extra_name = "count" if isinstance(form, PairsForm) else "arrival_s"
    if not form.input_tokens:
        raise ValueError(f"{where}.input_tokens: is empty; give at least one request")
    for name, values in (("output_tokens", form.output_tokens), (extra_name, extra)):
        if values is not None and len(values) != len(form.input_tokens):
            raise ValueError(f"{where}.{name}: {len(values)} entries where input_tokens has {len(form.input_tokens)}")
    for name, lengths in (("input_tokens", form.input_tokens), ("output_tokens", form.output_tokens)):
        for i, length in enumerate(lengths):
            if not 1 <= length <= MOST_TOKENS:
                raise ValueError(f"{where}.{name}[{i}]: {length} is out of range; give 1 to {MOST_TOKENS} tokens")
    before = 0.0
    for i, value in enumerate(extra or ()):
        if extra_name == "count" and not value > 0:
            raise ValueError(f"{where}.count[{i}]: {value} is not positive; leave out what was never seen")
        if extra_name == "arrival_s" and not value >= before:
            raise ValueError(f"{where}.arrival_s[{i}]: {value} lies before {before}; give times from 0 on, not falling")
        before = value


def workload_of(given: WorkloadFile) -> Workload:
    """The joint distribution that the file describes; more than a million pairs are binned, and `source` says so."""
    if given.moments is not None:
        form = given.moments
        inputs, outputs = (
            _dense(_named(lengths, name)) for lengths, name in ((form.input, "input"), (form.output, "output"))
        )
        return join(given.name, given.source, inputs, outputs, form.correlation)
    if given.pairs is not None:
        pairs = given.pairs
        count = np.ones(len(pairs.input_tokens)) if pairs.count is None else np.array(pairs.count)
        return merge(given.name, given.source, _ints(pairs.input_tokens), _ints(pairs.output_tokens), count)
    assert given.trace is not None
    arrival = None if given.trace.arrival_s is None else np.array(given.trace.arrival_s)
    return of_trace(
        given.name, given.source, Trace(arrival, _ints(given.trace.input_tokens), _ints(given.trace.output_tokens))
    )


def join(name: str, source: str, inputs: Histogram, outputs: Histogram, correlation: float) -> Workload:
    """A Workload from two histograms and the correlation between them."""
    inputs, outputs, said = within(inputs, outputs)
    pairs = None if correlation == 0 else joint_pmf(inputs, outputs, correlation)
    return joint(name, source + said, inputs, outputs, pairs)


def of_trace(name: str, source: str, trace: Trace) -> Workload:
    """The empirical distribution of a trace, the trace kept."""
    weight = np.ones(len(trace.input_tokens))
    return merge(name, source, trace.input_tokens, trace.output_tokens, weight, trace)


def _named(lengths: Moments, name: str) -> Floats:
    try:
        return lengths_pmf(lengths)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _dense(pmf: Floats) -> Histogram:
    return histogram(np.arange(1, len(pmf) + 1), pmf)


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)


def file_of(workload: Workload, licence: str) -> WorkloadFile:
    """The file that gives this workload again: its trace where it has one, its pairs otherwise."""
    if workload.trace is not None:
        trace = workload.trace
        arrival = None if trace.arrival_s is None else tuple(np.round(trace.arrival_s, 6).tolist())
        return WorkloadFile(
            SCHEMA_VERSION, workload.name, workload.source, licence,
            trace=TraceForm(tuple(trace.input_tokens.tolist()), tuple(trace.output_tokens.tolist()), arrival),
        )  # fmt: skip
    return WorkloadFile(
        SCHEMA_VERSION, workload.name, workload.source, licence,
        pairs=PairsForm(
            tuple(workload.input_tokens.tolist()),
            tuple(workload.output_tokens.tolist()),
            tuple(workload.probability.tolist()),
        ),
    )  # fmt: skip


def to_text(given: WorkloadFile) -> str:
    """The file: fields in the order of the dataclass, absent ones left out, columns of numbers in short lines."""
    return _text(dataclasses.asdict(given), "") + "\n"


def _text(value: object, indent: str) -> str:
    if isinstance(value, dict):
        deeper = indent + "  "
        fields = [f'{deeper}"{name}": {_text(part, deeper)}' for name, part in value.items() if part is not None]
        return "{\n" + ",\n".join(fields) + f"\n{indent}}}"
    if isinstance(value, tuple):
        numbers = json.dumps(value, allow_nan=False)[1:-1].split(", ")
        lines = [", ".join(numbers[i : i + _NUMBERS_A_LINE]) for i in range(0, len(numbers), _NUMBERS_A_LINE)]
        return f"[\n{indent}  " + f",\n{indent}  ".join(lines) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
