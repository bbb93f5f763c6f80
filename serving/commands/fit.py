"""Makes a workload file from a log, from counts or from moments, and shows what it says; or shows an existing one.

usage, one of:
  exegpt fit --trace=FILE --input_column=.. --output_column=.. [--arrival_column=..]
  exegpt fit --histogram=FILE | --input_histogram=FILE --output_histogram=FILE
  exegpt fit --input_mean=.. --input_std=.. --input_max=.. --output_mean=.. --output_std=.. --output_max=.. --moments=..
  exegpt fit --workload=NAME
Files are CSV with a header or JSON lines, packed with gzip or not; - is standard input. Requests out of order are
sorted by arrival. With --output=FILE the workload is written for the planning commands' --workload=FILE.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from serving.fit_report import show
from serving.flags import shared
from serving.outputs import STANDARD, check_target, write_whole
from solver.facts.histogram import margins
from solver.facts.raw_log import read_histogram, read_pairs, read_trace
from solver.facts.truncated_normal import Moments
from solver.facts.workload import Workload
from solver.facts.workload_file import (
    SCHEMA_VERSION,
    MomentsForm,
    WorkloadFile,
    file_of,
    join,
    load_file,
    of_trace,
    to_text,
    workload_of,
)

FLAGS = flags.FlagValues()
for _name, _text in (
    ("trace", "log of requests: one row each"),
    ("histogram", "counts of (input, output) pairs"),
    ("input_histogram", "counts of input lengths; with --output_histogram"),
    ("output_histogram", "counts of output lengths"),
    ("workload", "a workload file or preset to show, or to give another --correlation"),
    ("arrival_column", "of --trace: seconds, or ISO 8601 (without a zone: UTC); no times if absent"),
    ("name", "of the workload; the file's stem if absent"),
    ("source", "where the numbers come from, kept in the file; the file's name if absent"),
    ("output", "workload file to write; - is standard output, the tables then go to standard error"),
):
    flags.DEFINE_string(_name, None, _text, flag_values=FLAGS)
for _name, _default, _text in (
    ("input_column", "input_tokens", "column of prompt tokens"),
    ("output_column", "output_tokens", "column of output tokens, the end of sequence counted"),
    ("length_column", "length", "column of --input_histogram and --output_histogram"),
    ("count_column", "count", "column of the histograms"),
    ("licence", "not stated", "terms of the numbers, kept in the file"),
):
    flags.DEFINE_string(_name, _default, _text, flag_values=FLAGS)
for _side in ("input", "output"):
    flags.DEFINE_float(f"{_side}_mean", None, f"mean {_side} length, tokens", flag_values=FLAGS)
    flags.DEFINE_float(f"{_side}_std", None, "its deviation; 0: always the mean", flag_values=FLAGS)
    flags.DEFINE_integer(f"{_side}_max", None, f"longest {_side}, tokens", flag_values=FLAGS)
    flags.DEFINE_enum(
        f"{_side}_moments", None, ("truncated", "parent"), f"--moments of the {_side} alone", flag_values=FLAGS
    )
flags.DEFINE_enum(
    "moments",
    None,
    ("truncated", "parent"),
    "whether means and deviations are those after truncation to [0, max] or those of the normal before it",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "correlation",
    None,
    "of input and output length, wanted; independent, or as --workload has it, if absent",
    flag_values=FLAGS,
)

_MOMENTS = tuple(f"{side}_{figure}" for side in ("input", "output") for figure in ("mean", "std", "max"))
_SOURCES = ("trace", "histogram", "input_histogram", "output_histogram", "workload", *_MOMENTS)


def main(argv: list[str]) -> int:
    """Prints the tables and writes the file; raises ValueError with one line that names file or flag and value."""
    shared.refuse_arguments(argv)
    check_target("output", FLAGS.output)
    console = Console(highlight=False, soft_wrap=True, stderr=FLAGS.output == STANDARD)
    found, workload, note = _fit()
    show(workload, console)
    if note:
        console.print(note, markup=False)
    if FLAGS.output:
        write_whole(FLAGS.output, to_text(found))
    return 0


def _fit() -> tuple[WorkloadFile, Workload, str]:
    """The file, what it says, and a note for people; from whichever source the flags name."""
    given = [flag for flag in _SOURCES if FLAGS[flag].value is not None]
    if given == ["trace"]:
        return _from_trace()
    if given == ["histogram"]:
        pairs = read_pairs(
            FLAGS.histogram, _name_of(FLAGS.histogram), _origin(FLAGS.histogram),
            FLAGS.input_column, FLAGS.output_column, FLAGS.count_column,
        )  # fmt: skip
        _refuse_correlation("histogram")
        return file_of(pairs, FLAGS.licence), pairs, ""
    if given == ["input_histogram", "output_histogram"]:
        files = (FLAGS.input_histogram, FLAGS.output_histogram)
        sides = [read_histogram(file, FLAGS.length_column, FLAGS.count_column) for file in files]
        made = join(_name_of(files[1]), _origin(" and ".join(files)), sides[0], sides[1], FLAGS.correlation or 0.0)
        return file_of(made, FLAGS.licence), made, ""
    if given == ["workload"]:
        return _from_workload()
    if given == list(_MOMENTS):
        form = MomentsForm(_moments("input"), _moments("output"), FLAGS.correlation or 0.0)
        name = FLAGS.name or "moments"
        file = WorkloadFile(SCHEMA_VERSION, name, _origin("moments given by hand"), FLAGS.licence, moments=form)
        return file, workload_of(file), ""
    if given and set(given) <= set(_MOMENTS):
        missing = [flag for flag in _MOMENTS if flag not in given]
        raise ValueError(f"{missing[0]}: not given; moments need {', '.join(_MOMENTS)}")
    raise ValueError(
        f"{', '.join(given) or 'source'}: {'do not go together' if given else 'not given'}; give one of --trace, "
        "--histogram, --input_histogram with --output_histogram, --workload, or the moments of both lengths"
    )


def _from_trace() -> tuple[WorkloadFile, Workload, str]:
    _refuse_correlation("trace")
    trace, late = read_trace(FLAGS.trace, FLAGS.input_column, FLAGS.output_column, FLAGS.arrival_column)
    workload = of_trace(_name_of(FLAGS.trace), _origin(FLAGS.trace), trace)
    note = f"{late:,} requests stood before their predecessor in time; sorted by {FLAGS.arrival_column}" if late else ""
    return file_of(workload, FLAGS.licence), workload, note


def _from_workload() -> tuple[WorkloadFile, Workload, str]:
    file = load_file(FLAGS.workload)
    if FLAGS.correlation is None:
        return file, workload_of(file), ""
    name = FLAGS.name or file.name
    source = f"{file.source}; joined anew with correlation {FLAGS.correlation:g}"
    if file.moments is not None:
        form = dataclasses.replace(file.moments, correlation=FLAGS.correlation)
        file = dataclasses.replace(file, name=name, source=source, moments=form)
        return file, workload_of(file), ""
    inputs, outputs = margins(workload_of(file))
    workload = join(name, source, inputs, outputs, FLAGS.correlation)
    return file_of(workload, file.licence), workload, ""


def _moments(side: str) -> Moments:
    which = FLAGS[f"{side}_moments"].value or FLAGS.moments
    if which is None:
        raise ValueError(
            "moments: not given; say whether they are those after truncation (--moments=truncated) or those of the "
            "normal before it (--moments=parent)"
        )
    figures: dict[str, Any] = {figure: FLAGS[f"{side}_{figure}"].value for figure in ("mean", "std", "max")}
    try:
        return Moments(figures["mean"], figures["std"], figures["max"], which)
    except ValueError as error:
        raise ValueError(f"{side}.{error}") from None


def _refuse_correlation(flag: str) -> None:
    if FLAGS.correlation is not None:
        raise ValueError(f"correlation: {FLAGS.correlation:g} given, but --{flag} has its own; leave it out")


def _name_of(file: str) -> str:
    given: str | None = FLAGS.name
    return given or ("stdin" if file == STANDARD else Path(file).name.split(".")[0])


def _origin(file: str) -> str:
    given: str | None = FLAGS.source
    return given or ("standard input" if file == STANDARD else Path(file).name)
