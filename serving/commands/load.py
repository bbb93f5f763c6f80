"""Puts a load on a server and shows times, throughput, goodput under bounds, errors, and who was the limit.

usage, one of:
  exegpt load --rate=5 --workload=sharegpt [--burstiness=0.5]     arrivals drawn, a Poisson process (open loop)
  exegpt load --workload=azure-code [--speed=4]                   a workload that has arrival times, replayed
  exegpt load --trace=LOG.csv [--speed=4]                         a log, replayed
  exegpt load --concurrency=32 --input=PROMPTS.jsonl              a fixed number in flight (closed loop)
What is asked: --prompt, --input, or random token ids in the lengths of --workload or --trace, answered in full length.
--trace beside --prompt or --input gives the times only. Times from arrival count from when a request was to be sent, so
a late client or a full server cannot hide them. The last line on standard output is LOAD {json}. Status 1 where nothing
was answered or the server went away; what was measured until then is shown all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from serving.flags import connection, shared
from serving.outputs import check_target, write_whole
from solver.plan.bounds import Bounds

if TYPE_CHECKING:
    from serving.load.choose import Load, Wishes
    from serving.load.fleet import Outcome
    from serving.load.messages import Job, Sample

FLAGS = flags.FlagValues()
connection.define_connection(FLAGS)
for _name, _text in (
    ("prompt", "one prompt, for every request"),
    ("input", "file of JSON lines as exegpt generate takes them, asked in order and again; - is standard input"),
    ("workload", "file or preset: lengths of prompts and answers, and arrival times where it has them"),
    ("trace", "log of requests to replay: CSV with a header or JSON lines, packed with gzip or not"),
    ("output", "write all figures as JSON, with versions and hardware: FILE.json"),
    ("chart", "draw latencies and the course of the load: FILE.svg or FILE.html"),
    ("save_requests", "write every request's times as JSON lines: FILE.jsonl"),
):
    flags.DEFINE_string(_name, None, _text, flag_values=FLAGS)
for _name, _default, _text in (
    ("input_column", "input_tokens", "of --trace: prompt tokens"),
    ("output_column", "output_tokens", "of --trace: output tokens, the end of sequence counted"),
    ("arrival_column", "arrival_s", "of --trace: seconds, or ISO 8601"),
):
    flags.DEFINE_string(_name, _default, _text, flag_values=FLAGS)
for _name, _text in (
    ("rate", "requests a second that arrive, however slow the server is; inf: all at once"),
    ("burstiness", "of --rate: shape of the Gamma distributed gaps; 1, if absent, is Poisson, below 1 comes in bursts"),
    ("speed", "compresses the times of a replayed trace; 1 if absent"),
    ("duration_s", "begin no request after so many seconds"),
    ("timeout_s", "deadline of each request"),
    ("temperature", "of every request that does not say otherwise; 0 is greedy"),
    ("latency_bound_s", "goodput: limit on a request's latency"),
    ("ttft_bound_s", "goodput: limit on the time to the first token"),
    ("tpot_bound_s", "goodput: limit on the time per output token"),
):
    flags.DEFINE_float(_name, None, _text, flag_values=FLAGS)
for _name, _text in (
    ("concurrency", "requests in flight, the next one sent when one ends"),
    ("requests", "so many; 1000 if absent and no --duration_s; a file or a trace is asked whole"),
    ("processes", "that send, each with its own loop; as many as the rate needs if absent"),
    ("max_tokens", "of every request that does not say otherwise"),
):
    flags.DEFINE_integer(_name, None, _text, 1, flag_values=FLAGS)
flags.DEFINE_integer("warmup", 1, "requests before the load, sent at once and not counted", 0, flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 256, "random token ids are below this", 1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of arrivals, lengths and token ids", 0, flag_values=FLAGS)
flags.DEFINE_bool("ignore_eos", None, "answer every request up to its max_tokens", flag_values=FLAGS)
flags.DEFINE_bool("one_call", False, "all requests of a process over one GenerateStream call", flag_values=FLAGS)
flags.DEFINE_enum(
    "bound_from", None, ("encode", "arrival"),
    "where the bounds count from; arrival if absent, encode for a closed loop", flag_values=FLAGS,
)  # fmt: skip

_EXIT_INTERRUPTED = 130
_PARAMETERS = ("max_tokens", "temperature", "ignore_eos")


def main(argv: list[str]) -> int:
    """Runs the load; raises ValueError where nothing was answered or the server went away."""
    shared.refuse_arguments(argv)
    check_target("output", FLAGS.output, (".json",))
    check_target("chart", FLAGS.chart, (".svg", ".html"))
    check_target("save_requests", FLAGS.save_requests, (".jsonl",))
    bounds = _bounds()

    from serving.load.choose import choose
    from serving.load.figures import figures_of
    from serving.load.fleet import run_fleet, split
    from serving.load.report import fields_of
    from serving.load.table import lines_of, table_of

    load = choose(_wishes())
    jobs = split(_job(load), FLAGS.processes or _processes(load))
    with _Bar(load) as bar:
        outcome = run_fleet(jobs, bar.show)
    figures = figures_of(outcome, load.planned, bounds, open_loop=load.at_s is not None)
    title = f"{load.title}; {len(jobs)} {'process' if len(jobs) == 1 else 'processes'}, {FLAGS.address}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(table_of(figures, title))
    for line in lines_of(figures, bounds):
        console.print(line, markup=False)
    fields = fields_of(figures, bounds, load.title)
    _write(fields, outcome, bounds)
    print(f"LOAD {json.dumps(fields, allow_nan=False)}", flush=True)
    if outcome.interrupted:
        return _EXIT_INTERRUPTED
    if outcome.lost is not None:
        raise ValueError(
            f"address: {FLAGS.address} was lost: {outcome.lost}; what was measured until then stands above"
        )
    if not figures.answered:
        code, text = next(iter(figures.examples.items()), ("no request", "was sent"))
        raise ValueError(f"load: no request was answered: {code}: {text}")
    return 0


def _write(fields: dict[str, object], outcome: Outcome, bounds: Bounds) -> None:
    """The files that were asked for."""
    from serving.load.chart import charts_of
    from serving.load.provenance import provenance
    from serving.load.report import row_of
    from solver.report.page import write_report

    if FLAGS.output is not None:
        whole = {**provenance(FLAGS.seed), "address": FLAGS.address, **fields}
        write_whole(FLAGS.output, json.dumps(whole, indent=2, allow_nan=False) + "\n")
    if FLAGS.save_requests is not None:
        write_whole(FLAGS.save_requests, "".join(f"{json.dumps(row)}\n" for row in map(row_of, outcome.samples)))
    if FLAGS.chart is not None:
        if not outcome.samples:
            raise ValueError("chart: nothing was measured that could be drawn")
        write_report(FLAGS.chart, "Load", charts_of(outcome.samples, bounds))


def _bounds() -> Bounds:
    closed = FLAGS.concurrency is not None
    return Bounds(
        latency_s=FLAGS.latency_bound_s,
        bound_from=FLAGS.bound_from or ("encode" if closed else "arrival"),
        ttft_s=FLAGS.ttft_bound_s,
        tpot_s=FLAGS.tpot_bound_s,
    )


def _wishes() -> Wishes:
    from serving.load.choose import Wishes

    given = {name: FLAGS[name].value for name in _PARAMETERS}
    return Wishes(
        prompt=FLAGS.prompt,
        input=FLAGS.input,
        workload=FLAGS.workload,
        trace=FLAGS.trace,
        columns=(FLAGS.input_column, FLAGS.output_column, FLAGS.arrival_column),
        rate_rps=FLAGS.rate,
        burstiness=FLAGS.burstiness,
        speed=FLAGS.speed,
        concurrency=FLAGS.concurrency,
        requests=FLAGS.requests,
        duration_s=FLAGS.duration_s,
        vocab_size=FLAGS.vocab_size,
        seed=FLAGS.seed,
        parameters={name: value for name, value in given.items() if value is not None},
    )


def _job(load: Load) -> Job:
    """The whole load as one process would run it."""
    from serving.load.messages import Job

    if FLAGS.timeout_s is not None and not 0 < FLAGS.timeout_s < math.inf:
        raise ValueError(f"timeout_s: {FLAGS.timeout_s:g} is no deadline; give seconds above 0")
    return Job(
        **connection.connection(FLAGS),
        demand=load.demand,
        first=0,
        step=1,
        at_s=None if load.at_s is None else load.at_s.tolist(),
        count=load.count,
        concurrency=FLAGS.concurrency or 1,
        until_s=load.until_s,
        warmup=FLAGS.warmup,
        timeout_s=FLAGS.timeout_s,
        one_call=FLAGS.one_call,
    )


def _processes(load: Load) -> int:
    from serving.load.fleet import processes_for

    return processes_for(load.rate_rps, load.mean_output_tokens, FLAGS.concurrency, one_call=FLAGS.one_call)


class _Bar:
    """How far the load is, and what came so far; on a terminal only."""

    def __init__(self, load: Load) -> None:
        from serving.progress import Display

        self._display = Display()
        self._planned = load.planned
        self._total = load.until_s if load.planned is None else load.planned

    def __enter__(self) -> _Bar:
        self._display.__enter__()
        self._update = self._display.bar("load", self._total)
        self._tokens = self._errors = self._seen = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, value, trace)

    def show(self, samples: Sequence[Sample], seconds: float) -> None:
        for sample in samples[self._seen :]:
            self._tokens += sample.tokens
            self._errors += sample.error is not None
        self._seen = len(samples)
        per_s = 1 / max(seconds, 1e-3)
        note = (
            f"{self._seen} done, {self._seen * per_s:.1f}/s, {self._tokens * per_s:.0f} tokens/s, {self._errors} errors"
        )
        self._update(seconds if self._planned is None else self._seen, note)
