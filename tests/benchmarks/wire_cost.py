"""What the server's work costs beside a bare grpc.aio servicer: messages, coalesced tokens, time to first token.

    python -m tests.benchmarks.wire_cost --output=tests/benchmarks/results/wire_cost

`exegpt serve` as a process over the fake engine without any step time, and a servicer that sends messages of the same
size and does nothing else (`tests.benchmarks.workers.bare_grpc`), in turns. All of a server's processes share one core,
the client has another and works on bytes. Two figures are told of each run: what came a second, and what would come of
a server's core that did nothing else, which is what counts where the client was the limit. Goals: at least 70% of the
bare servicer's messages (one call a request) and tokens (all requests over one call), at most 1 ms more to the first
token (median), one request at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import grpc
import grpc.aio

from serving.client.messages import make_request
from serving.proto.exegpt.v1 import generation_pb2 as pb
from tests.benchmarks.provenance import provenance
from tests.serving.servers import ROOT, engine_pid, environment, server_process, write_tiny_model

ROWS, TOKENS = 128, 129
PER_PHASE = (1, 8)
GOALS = {"messages": 0.70, "tokens": 0.70, "first_token_s": 1e-3}
_CALL, _SESSION = "/exegpt.v1.Generation/Generate", "/exegpt.v1.Generation/GenerateStream"
_PLAIN: Callable[[bytes], bytes] = bytes


@dataclasses.dataclass(frozen=True)
class Server:
    """One of the two, as a process, and all processes whose time is its own."""

    name: str
    address: str
    pids: tuple[int, ...]

    def cpu_s(self) -> list[float]:
        return [_cpu_s(pid) for pid in self.pids]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a closed loop got.

    Attributes:
      messages, tokens: in all.
      shares: of a core, by process of the server: the front end's, the engine's.
    """

    server: str
    per_phase: int
    one_call: bool
    seconds: float
    messages: int
    tokens: int
    shares: tuple[float, ...]
    client_share: float

    @property
    def count(self) -> int:
        """What the goal is about: messages of calls, tokens of a session."""
        return self.tokens if self.one_call else self.messages

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def per_core_second(self) -> float:
        return self.per_second / sum(self.shares)


async def over_calls(channel: grpc.aio.Channel, until_s: float) -> tuple[int, int]:
    """A call a request; each message is counted as it comes, unread."""
    ask = channel.unary_stream(_CALL, request_serializer=_PLAIN, response_deserializer=_PLAIN)
    request = _request("").SerializeToString()
    messages = answers = 0

    async def in_turn() -> None:
        nonlocal messages, answers
        while time.monotonic() < until_s:
            async for _ in ask(request):
                messages += 1
            answers += 1

    await asyncio.gather(*(in_turn() for _ in range(ROWS)))
    return messages, answers * TOKENS


async def over_one_call(channel: grpc.aio.Channel, until_s: float) -> tuple[int, int]:
    """All requests over one call; who has ended is asked again."""
    call = channel.stream_stream(
        _SESSION, pb.GenerateStreamRequest.SerializeToString, pb.GenerateStreamResponse.FromString
    )()
    await call.initial_metadata()
    numbers = itertools.count()

    def asked(count: int) -> pb.GenerateStreamRequest:
        return pb.GenerateStreamRequest(requests=[_request(f"r{next(numbers)}") for _ in range(count)])

    await call.write(asked(ROWS))
    messages = tokens = 0
    live = ROWS
    async for message in call:
        messages += 1
        ended = 0
        for response in message.responses:
            tokens += len(response.token_ids)
            ended += response.HasField("finish")
        if message.errors:
            raise RuntimeError(f"{message.errors[0].message}: refused, which no request here may be")
        live -= ended
        if ended and time.monotonic() < until_s:
            await call.write(asked(ended))
            live += ended
        if not live:
            await call.done_writing()
    return messages, tokens


def _request(name: str, tokens: int = TOKENS) -> pb.GenerateRequest:
    return make_request([5, 6, 7], name, max_tokens=tokens, ignore_eos=True)


def run_case(server: Server, per_phase: int, one_call: bool, seconds: float) -> Run:
    async def load() -> tuple[int, int]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await channel.channel_ready()
            function = over_one_call if one_call else over_calls
            return await function(channel, time.monotonic() + seconds)

    servers_s, client_s, began_s = server.cpu_s(), _cpu_s(os.getpid()), time.monotonic()
    messages, tokens = asyncio.run(load())
    took_s = time.monotonic() - began_s
    shares = tuple((after_s - before_s) / took_s for before_s, after_s in zip(servers_s, server.cpu_s(), strict=True))
    client_share = (_cpu_s(os.getpid()) - client_s) / took_s
    return Run(server.name, per_phase, one_call, took_s, messages, tokens, shares, client_share)


def first_tokens_s(servers: list[Server], requests: int) -> dict[str, list[float]]:
    """Seconds to the first message of each server, asked in turns, one request at a time."""
    found: dict[str, list[float]] = {server.name: [] for server in servers}
    request = _request("", 2).SerializeToString()
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server.address)) for server in servers]
        calls = [
            channel.unary_stream(_CALL, request_serializer=_PLAIN, response_deserializer=_PLAIN) for channel in channels
        ]
        for number in range(requests + 20):
            for server, ask in zip(servers, calls, strict=True):
                began_s = time.perf_counter()
                answer = ask(request)
                next(answer)
                took_s = time.perf_counter() - began_s
                for _ in answer:
                    pass
                if number >= 20:
                    found[server.name].append(took_s)
    return found


@contextlib.contextmanager
def both_servers(model: pathlib.Path, per_phase: int, core: int) -> Iterator[list[Server]]:
    """Ours and the bare one, their processes on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    command = [sys.executable, "-m", "tests.benchmarks.workers.bare_grpc", f"--per_phase={per_phase}"]
    flags = (
        f"--max_rows={ROWS}",
        "--encode_batch=32",
        f"--decode_iterations={per_phase}",
        f"--max_requests={4 * ROWS}",
    )
    try:
        with server_process(model, "--engine=fake", *flags) as ours:
            bare = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
            try:
                os.sched_setaffinity(0, before - {core} or before)
                assert bare.stdout is not None
                address = bare.stdout.readline().removeprefix("listening on ").strip()
                bare.stdout.readline()
                engine = engine_pid(ours)
                assert engine is not None
                yield [
                    Server("exegpt", ours.address, (ours.process.pid, engine)),
                    Server("bare grpc.aio", address, (bare.pid,)),
                ]
            finally:
                bare.kill()
                bare.wait()
    finally:
        os.sched_setaffinity(0, before)


def ratios(runs: list[Run], per_phase: int, one_call: bool) -> tuple[float, float]:
    """Ours to the bare one, medians over the rounds: of what came a second, and of a core's seconds."""
    kind = [run for run in runs if (run.per_phase, run.one_call) == (per_phase, one_call)]
    pairs = list(zip([r for r in kind if r.server == "exegpt"], [r for r in kind if r.server != "exegpt"], strict=True))
    return (
        statistics.median(ours.per_second / bare.per_second for ours, bare in pairs),
        statistics.median(ours.per_core_second / bare.per_core_second for ours, bare in pairs),
    )


def _cpu_s(pid: int) -> float:
    """Processor time of a process, finer than ticks: of all its threads."""
    total_ns = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def report(facts: dict[str, object], runs: list[Run], first_s: dict[int, dict[str, list[float]]]) -> str:
    lines = [
        "# The server beside a bare grpc.aio servicer",
        "",
        ". ".join(f"{name}: {value}" for name, value in facts.items()),
        "",
        "| over | tokens a phase | server | messages/s | tokens/s | server's core | client's core |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        over = "one call" if run.one_call else "calls"
        lines.append(
            f"| {over} | {run.per_phase} | {run.server} | {run.messages / run.seconds:.0f} | "
            f"{run.tokens / run.seconds:.0f} | "
            f"{' + '.join(f'{share:.0%}' for share in run.shares)} | {run.client_share:.0%} |"
        )
    lines += [
        "",
        "| over | tokens a phase | ours to bare, a second | ours to bare, of a core | goal |",
        "|---|---|---|---|---|",
    ]
    for one_call, per_phase in itertools.product((False, True), PER_PHASE):
        second, core = ratios(runs, per_phase, one_call)
        name = "tokens over one call" if one_call else "messages of calls"
        verdict = "reached" if core >= GOALS["tokens" if one_call else "messages"] else "missed"
        lines.append(f"| {name} | {per_phase} | {second:.0%} | {core:.0%} | 70%: {verdict} |")
    lines += ["", "| tokens a phase | server | first token p50 ms | p99 ms |", "|---|---|---|---|"]
    for per_phase, found in first_s.items():
        for name, values in found.items():
            lines.append(f"| {per_phase} | {name} | {_at(values, 50) * 1e3:.2f} | {_at(values, 99) * 1e3:.2f} |")
        added_s = _at(found["exegpt"], 50) - _at(found["bare grpc.aio"], 50)
        verdict = "reached" if added_s <= GOALS["first_token_s"] else "missed"
        lines.append(f"| {per_phase} | added | {added_s * 1e3:.2f} (goal 1: {verdict}) | |")
    return "\n".join(lines) + "\n"


def _at(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="stem of the JSON and Markdown files")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="for times to the first token")
    arguments = parser.parse_args()
    runs: list[Run] = []
    first_s: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(pathlib.Path(folder))
        for per_phase in PER_PHASE:
            with both_servers(model, per_phase, min(os.sched_getaffinity(0))) as servers:
                for one_call in (False, True):
                    for server in servers:
                        run_case(server, per_phase, one_call, 1.0)
                    for _ in range(arguments.rounds):
                        for server in servers:
                            runs.append(run_case(server, per_phase, one_call, arguments.seconds))
                            print(runs[-1], flush=True)
                first_s[per_phase] = first_tokens_s(servers, arguments.requests)
    facts = provenance("python -m tests.benchmarks.wire_cost", None)
    facts |= {"grpc": grpc.__version__, "load_average": round(os.getloadavg()[0], 2)}
    text = report(facts, runs, first_s)
    print(text)
    if arguments.output:
        stem = pathlib.Path(arguments.output)
        stem.with_suffix(".md").write_text(text)
        data = {**facts, "runs": [dataclasses.asdict(run) for run in runs], "first_token_s": first_s}
        stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
