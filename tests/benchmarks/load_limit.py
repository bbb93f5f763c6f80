"""How much `exegpt load` and the server reach together, over calls and over one session, and what the client costs.

    python -m tests.benchmarks.load_limit --output=tests/benchmarks/results/load_limit

`exegpt serve` as a process over the fake engine without any step time, so that nothing but the wire, the front end and
the client takes time; closed loops of 128 requests, short and long answers, 1 and 8 tokens a phase. Processor seconds
of the client's processes for each request and message are what `serving.load.fleet.processes_for` counts with: fitted
to short and long answers, medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import tempfile
import time

from serving.load.demand import Prompts
from serving.load.figures import figures_of
from serving.load.fleet import run_fleet, split
from serving.load.messages import Job
from solver.plan.bounds import Bounds
from tests.benchmarks.provenance import provenance
from tests.serving.servers import ServerProcess, server_process, write_tiny_model

CONCURRENCY = 128
SHORT_TOKENS, LONG_TOKENS = 2, 128
PER_PHASE = (1, 8)


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
      tokens: of each answer.
      per_phase: decode iterations of a phase, which is the most tokens that a message brings.
    """

    one_call: bool
    tokens: int
    per_phase: int
    processes: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What a case reached; `messages_per_s` counts each request's part of a session's message."""

    case: Case
    requests_per_s: float
    tokens_per_s: float
    messages_per_s: float
    client_cpu_share: float
    server_cpu_share: float
    client_s_per_request: float
    errors: int


def run_case(server: ServerProcess, case: Case, seconds: float) -> Found:
    prompt = {"prompt": [5, 6, 7], "max_tokens": case.tokens, "ignore_eos": True}
    job = Job(
        address=server.address,
        key=None,
        tls=None,
        demand=Prompts([prompt]),
        first=0,
        step=1,
        at_s=None,
        count=None,
        concurrency=CONCURRENCY,
        until_s=seconds,
        warmup=16,
        timeout_s=None,
        one_call=case.one_call,
    )
    before_s, began_s = _cpu_s(server.process.pid), time.monotonic()
    outcome = run_fleet(split(job, case.processes), lambda samples, now_s: None)
    server_share = (_cpu_s(server.process.pid) - before_s) / (time.monotonic() - began_s)
    figures = figures_of(outcome, None, Bounds(), open_loop=False)
    share = sum(figures.client.cpu_shares)
    return Found(
        case=case,
        requests_per_s=figures.requests_per_s,
        tokens_per_s=figures.tokens_per_s,
        messages_per_s=figures.tokens_per_s / figures.tokens_per_message,
        client_cpu_share=share,
        server_cpu_share=server_share,
        client_s_per_request=share * figures.seconds / figures.answered if figures.answered else math.nan,
        errors=sum(figures.errors.values()),
    )


def costs(found: list[Found]) -> dict[str, object]:
    """Processor microseconds of the client for a request and for each message, by kind of call and phase."""
    fitted: dict[str, object] = {}
    for one_call in (False, True):
        for per_phase in PER_PHASE:
            kind = [f for f in found if (f.case.one_call, f.case.per_phase) == (one_call, per_phase)]
            (short, few), (long, many) = (
                _medians([f for f in kind if f.case.tokens == tokens]) for tokens in (SHORT_TOKENS, LONG_TOKENS)
            )
            message_s = (long - short) / (many - few)
            fitted[f"{'one call' if one_call else 'calls'}, {per_phase} a phase"] = {
                "request_us": round((short - few * message_s) * 1e6, 1),
                "message_us": round(message_s * 1e6, 1),
            }
    return fitted


def _medians(found: list[Found]) -> tuple[float, float]:
    """Client's seconds, and messages, of a request."""
    return (
        statistics.median(f.client_s_per_request for f in found),
        statistics.median(f.messages_per_s / f.requests_per_s for f in found),
    )


def _cpu_s(process: int) -> float:
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table(found: list[Found], facts: dict[str, object], fitted: dict[str, object]) -> str:
    lines = [
        "# What client and server reach together on the fake engine",
        "",
        ". ".join(f"{name}: {value}" for name, value in facts.items()),
        "",
        "| over | tokens a phase | tokens an answer | client processes | requests/s | tokens/s | messages/s | "
        "client CPU | server CPU | client us a request |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        over = "one call" if f.case.one_call else "calls"
        lines.append(
            f"| {over} | {f.case.per_phase} | {f.case.tokens} | {f.case.processes} | {f.requests_per_s:.0f} | "
            f"{f.tokens_per_s:.0f} | {f.messages_per_s:.0f} | {f.client_cpu_share:.0%} | {f.server_cpu_share:.0%} | "
            f"{f.client_s_per_request * 1e6:.0f} |"
        )
    lines += ["", "Client's processor time, fitted to short and long answers:", ""]
    lines += [f"- {name}: {json.dumps(value)}" for name, value in fitted.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="stem of the JSON and Markdown files")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="*", default=[1])
    arguments = parser.parse_args()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(pathlib.Path(folder))
        for per_phase in PER_PHASE:
            flags = (f"--max_rows={CONCURRENCY}", "--encode_batch=32", f"--decode_iterations={per_phase}")
            with server_process(model, "--engine=fake", *flags) as server:
                for _ in range(arguments.rounds):
                    for processes in arguments.processes:
                        for one_call in (False, True):
                            for tokens in (SHORT_TOKENS, LONG_TOKENS):
                                case = Case(one_call, tokens, per_phase, processes)
                                found.append(run_case(server, case, arguments.seconds))
                                print(found[-1], flush=True)
    facts = provenance("python -m tests.benchmarks.load_limit", None)
    facts |= {"grpc": _grpc(), "load_average": round(os.getloadavg()[0], 2), "scheduling": _scheduling()}
    fitted = costs(found)
    print(_table(found, facts, fitted))
    if arguments.output:
        stem = pathlib.Path(arguments.output)
        rows = [dataclasses.asdict(f) for f in found]
        stem.with_suffix(".json").write_text(
            json.dumps({**facts, "cases": rows, "client_cost": fitted}, indent=1) + "\n"
        )
        stem.with_suffix(".md").write_text(_table(found, facts, fitted))


def _grpc() -> str:
    import grpc

    return str(grpc.__version__)


def _scheduling() -> str:
    return "idle priority" if os.sched_getscheduler(0) == os.SCHED_IDLE else "normal"


if __name__ == "__main__":
    main()
