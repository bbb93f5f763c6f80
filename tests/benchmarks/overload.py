"""What a server does at several times its capacity: goodput, refusals, health, memory.

    python -m tests.benchmarks.overload --output=tests/benchmarks/results/overload
    python -m tests.benchmarks.overload --engine=jax --output=tests/benchmarks/results/overload_real

`exegpt serve` as a process over the fake engine, whose phases take the time that --step_s says, or over the real one
with the embedded model, whose phases take the time they take while the load itself uses the same machine. First the
peak: what a closed loop that keeps rows and a phase's queue full has answered within the bound. Then Poisson arrivals
at `--times` that rate, every request with the bound as its deadline; the generator is that of `exegpt load`. Health is
checked on a connection of its own meanwhile. Goals: goodput at least 95% of the peak, refusals p99 within 20 ms, health
p99 within 100 ms, at most 1% of admitted requests over the bound, memory flat.

A refusal is a request that ended without a token for a reason of admission; one that was let in and then not answered
within the bound is late, whatever ended it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import itertools
import json
import math
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import AsyncClient
from serving.load.arrivals import drawn
from serving.load.figures import Spread, spread
from serving.load.loop import Loop, Numbered
from serving.load.results import LoadRequest, LoadResult
from tests.benchmarks.provenance import provenance
from tests.serving.servers import server_process, write_tiny_model

ROWS, ENCODE_BATCH, ITERATIONS, TOKENS = 8, 4, 8, 33
GOALS = {"goodput": 0.95, "refusal_p99_s": 0.02, "health_p99_s": 0.1, "late": 0.01}
_AT_ONCE = ("UNAVAILABLE: ", "DEADLINE_EXCEEDED: the deadline cannot be met")
_HEALTH_EVERY_S = 0.05
NUMBERS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo" / "numbers"


@dataclasses.dataclass(frozen=True)
class Found:
    """One stretch of load.

    Attributes:
      offered_rps, goodput_rps: sent, and answered within the bound, a second.
      admitted, late: let in, and of those not answered within the bound.
      refused: turned away, and how long that took, from sending; `reasons` has the codes.
      latency_s: of what was answered, from its planned time.
      resident_bytes: of the server, over time.
    """

    seconds: float
    offered_rps: float
    goodput_rps: float
    admitted: int
    late: int
    refused: Spread
    reasons: dict[str, int]
    latency_s: Spread
    health_s: Spread
    resident_bytes: tuple[int, ...]


class Watch:
    """Health and memory of a server, on a thread, until it is left."""

    def __init__(self, address: str, pid: int) -> None:
        self._address, self._pid = address, pid
        self._done = threading.Event()
        self.health_s: list[float] = []
        self.resident_bytes: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not self._done.wait(_HEALTH_EVERY_S):
                begun_s = time.monotonic()
                stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
                self.health_s.append(time.monotonic() - begun_s)
                self.resident_bytes.append(_resident_bytes(self._pid))


def _requests(times_s: Sequence[float]) -> Iterator[Numbered]:
    for number, at_s in enumerate(times_s):
        yield number, LoadRequest([5, 6, 7], {"max_tokens": TOKENS, "ignore_eos": True}, float(at_s))


async def _load(
    address: str, times_s: Sequence[float] | None, seconds: float, bound_s: float | None
) -> list[tuple[LoadResult, float]]:
    """Each result with the time at which it ended. Without times: a closed loop."""
    found: list[tuple[LoadResult, float]] = []
    # A pause of the client's collector would be counted as the server's.
    gc.collect()
    gc.freeze()
    async with AsyncClient(address, retries=False) as client:
        start_s = time.monotonic()

        def keep(result: LoadResult) -> None:
            found.append((result, time.monotonic() - start_s))

        loop = Loop(client, start_s, timeout_s=bound_s, on_result=keep)
        if times_s is None:
            endless = (next(_requests([0.0])) for _ in itertools.count())
            await loop.closed(endless, ROWS + 2 * ENCODE_BATCH, seconds)
        else:
            await loop.open(_requests(times_s))
    return found


def measure(
    address: str, pid: int, seconds: float, bound_s: float | None, rate_rps: float | None, seed: int = 0
) -> Found:
    """A closed loop, or arrivals at a rate."""
    times_s = None
    if rate_rps is not None:
        times_s = drawn(rate_rps, burstiness=1.0, seed=seed, count=None, until_s=seconds).tolist()
    with Watch(address, pid) as watch:
        found = asyncio.run(_load(address, times_s, seconds, bound_s))
    limit_s = math.inf if bound_s is None else bound_s
    answered = [result for result, _ in found if result.error is None]
    good = [result for result in answered if result.last_token_s - result.sent_s <= limit_s]
    refused = [(result, ended_s) for result, ended_s in found if _is_refused(result)]
    codes = [(result.error or "").partition(":")[0] for result, _ in refused]
    ended_s = max((result.last_token_s for result in answered), default=seconds)
    return Found(
        seconds=ended_s,
        offered_rps=len(found) / seconds,
        goodput_rps=len(good) / ended_s,
        admitted=len(found) - len(refused),
        late=len(found) - len(refused) - len(good),
        refused=spread(ended_s - result.sent_s for result, ended_s in refused),
        reasons={code: codes.count(code) for code in sorted(set(codes))},
        latency_s=spread(result.last_token_s - result.planned_s for result in answered),
        health_s=spread(watch.health_s),
        resident_bytes=tuple(watch.resident_bytes),
    )


def _is_refused(result: LoadResult) -> bool:
    return result.error is not None and not result.token_ids and result.error.startswith(_AT_ONCE)


def _resident_bytes(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_slope_bytes_per_s(resident_bytes: Sequence[int], seconds: float) -> float:
    """Over the second half, when buffers have their size."""
    half = resident_bytes[len(resident_bytes) // 2 :]
    return (half[-1] - half[0]) / (seconds / 2) if len(half) > 1 else 0.0


def verdicts(peak: Found, over: Found) -> dict[str, tuple[float, bool]]:
    """Each figure, and whether it reaches its goal."""
    goodput = over.goodput_rps / peak.goodput_rps
    late = over.late / max(over.admitted, 1)
    return {
        "goodput": (goodput, goodput >= GOALS["goodput"]),
        "refusal_p99_s": (over.refused.p99, over.refused.p99 <= GOALS["refusal_p99_s"]),
        "health_p99_s": (over.health_s.p99, over.health_s.p99 <= GOALS["health_p99_s"]),
        "late": (late, late <= GOALS["late"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="stem of the JSON and Markdown files")
    parser.add_argument("--engine", choices=("fake", "jax"), default="fake")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--peak_seconds", type=float, default=20.0)
    parser.add_argument("--times", type=float, default=5.0, help="of the peak, offered")
    parser.add_argument("--step_s", type=float, default=0.005, help="of one decode iteration, where the engine is fake")
    parser.add_argument("--bound_s", type=float, default=2.0, help="latency bound, and deadline of every request")
    arguments = parser.parse_args()
    flags = (
        *(f"--max_rows={ROWS}", f"--encode_batch={ENCODE_BATCH}", f"--decode_iterations={ITERATIONS}"),
        *(("--engine=fake", f"--fake_step_s={arguments.step_s}") if arguments.engine == "fake" else ()),
    )
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(pathlib.Path(folder)) if arguments.engine == "fake" else NUMBERS
        with server_process(model, *flags) as server:
            pid = server.process.pid
            measure(server.address, pid, 3.0, None, None)
            peak = measure(server.address, pid, arguments.peak_seconds, arguments.bound_s, None)
            print(f"peak: {peak.goodput_rps:.1f} a second within the bound", flush=True)
            rate_rps = arguments.times * peak.goodput_rps
            over = measure(server.address, pid, arguments.seconds, arguments.bound_s, rate_rps)
            after = measure(server.address, pid, arguments.peak_seconds / 2, arguments.bound_s, None)
    shown = {
        **provenance(f"python -m tests.benchmarks.overload --engine={arguments.engine}", 0),
        "load_average": round(os.getloadavg()[0], 2),
        "scheduling": "idle priority" if os.sched_getscheduler(0) == os.SCHED_IDLE else "normal",
        **vars(arguments),
    }
    slope = memory_slope_bytes_per_s(over.resident_bytes, arguments.seconds)
    text = _table(shown, peak, over, after, slope)
    print(text)
    if arguments.output:
        stem = pathlib.Path(arguments.output)
        stem.with_suffix(".md").write_text(text)
        stretches = {name: _plain(found) for name, found in (("peak", peak), ("over", over), ("after", after))}
        data = {**shown, "verdicts": verdicts(peak, over), "memory_bytes_per_s": slope, **stretches}
        stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


def _plain(found: Found) -> dict[str, object]:
    fields = dataclasses.asdict(found)
    memory = fields.pop("resident_bytes")
    return {**fields, "resident_bytes_first_half_last": [memory[0], memory[len(memory) // 2], memory[-1]]}


def _table(facts: dict[str, object], peak: Found, over: Found, after: Found, slope: float) -> str:
    lines = [
        f"# Overload on the {'fake' if facts['engine'] == 'fake' else 'real'} engine",
        "",
        ". ".join(f"{name}: {value}" for name, value in facts.items()),
        "",
        "| load | offered a second | within the bound a second | admitted | late | refused | refusal p50, p99 ms | "
        "latency p50, p99 s | health p50, p99 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in (("peak (closed loop)", peak), ("overload", over), ("closed loop again", after)):
        lines.append(
            f"| {name} | {found.offered_rps:.1f} | {found.goodput_rps:.1f} | {found.admitted} | {found.late} | "
            f"{found.refused.count} | {found.refused.p50 * 1e3:.1f}, {found.refused.p99 * 1e3:.1f} | "
            f"{found.latency_s.p50:.2f}, {found.latency_s.p99:.2f} | "
            f"{found.health_s.p50 * 1e3:.1f}, {found.health_s.p99 * 1e3:.1f} |"
        )
    lines += ["", "| goal | found | |", "|---|---|---|"]
    for name, (value, reached) in verdicts(peak, over).items():
        lines.append(f"| {name}: {GOALS[name]} | {value:.4g} | {'reached' if reached else 'missed'} |")
    lines += ["", "Times are the client's, from sending: its own lag on a busy machine is in them."]
    lines += ["", f"Resident memory of the front end in the second half of the overload: {slope:+.0f} bytes a second."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
