"""A server at 80% of its load for as long as one likes, while its engine is killed and stopped and clients misbehave.

    python -m tests.benchmarks.soak --minutes=60 --output=tests/benchmarks/results/soak

`exegpt serve` as a process over the fake engine. What a closed loop reaches is its capacity; then requests arrive at
80% of it (Poisson): over one call, over calls of their own, some cancelled, some with a deadline, some read slowly,
some whose connection is dropped. Meanwhile the engine process gets SIGKILL or SIGSTOP now and then. Every token that
comes is compared with the one that should. In the end nothing may be left: no row, no request, no task, no descriptor;
and memory, once warm, may not grow.
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
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import cast

import grpc
import numpy as np

from serving.client import AsyncClient, AsyncSession, Chunk, ServerError
from serving.load.loop import Loop
from serving.load.results import LoadRequest
from serving.proto.exegpt.v1 import admin_pb2_grpc
from tests.benchmarks.provenance import provenance
from tests.serving.left_behind import descriptors, left_behind, resident_bytes, settled
from tests.serving.servers import ServerProcess, engine_pid, faults, server_process, write_tiny_model
from tests.serving.standing_load import WatchedHealth, expected, prompts

FLAGS = (
    *("--engine=fake", "--fake_step_s=0.005", "--decode_iterations=4", "--max_rows=16", "--cache_tokens=200"),
    # While an engine is being replaced, who asks waits.
    "--max_requests=5000",
)
LOAD, AT_ONCE = 0.8, 32
KINDS = {"session": 0.5, "call": 0.2, "cancelled": 0.1, "deadline": 0.1, "slow": 0.05, "dropped": 0.05}
# Between two blows: a new engine takes some ten seconds, and what has waited meanwhile takes four times as long.
CHAOS_S = 50.0
WARM = 0.25
_GOAL_BYTES_PER_H = 1e6


@dataclasses.dataclass
class Found:
    """What became of a soak.

    Attributes:
      capacity_rps, seconds: of the closed loop; of the load.
      ended: requests by kind.
      wrong: a line about each that did not end as it should.
      blows: signals to engines.
      resident_bytes: of the front end, a second apart.
      descriptors: before and after.
    """

    capacity_rps: float
    seconds: float
    ended: Counter[str]
    wrong: list[str]
    blows: Counter[str]
    resident_bytes: list[int]
    descriptors: tuple[int, int]

    @property
    def slope_bytes_per_h(self) -> float:
        """Of a line through what is resident once warm."""
        warm = self.resident_bytes[round(WARM * len(self.resident_bytes)) :]
        return float(np.polyfit(np.arange(len(warm)), warm, 1)[0]) * 3600

    @property
    def grown_bytes(self) -> int:
        """From the second quarter's median to the last one's."""
        quarters = np.array_split(np.array(self.resident_bytes), 4)
        return int(np.median(quarters[3]) - np.median(quarters[1]))


class Arrivals:
    """Requests of all kinds at a rate."""

    def __init__(self, address: str, seed: int) -> None:
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address, self._rng = address, random.Random(seed)
        self._prompts = prompts(seed)
        self._kinds: dict[str, Callable[[AsyncClient, AsyncSession, list[int], int], Coroutine[None, None, None]]] = {
            "session": lambda client, session, *asked: self._whole(session.stream, *asked),
            "call": lambda client, session, *asked: self._whole(client.stream, *asked),
            "slow": lambda client, session, *asked: self._whole(client.stream, *asked, pause_s=0.05),
            "cancelled": lambda client, session, *asked: self._some(session.stream, *asked),
            "deadline": lambda client, session, *asked: self._by_deadline(session.stream, *asked),
            "dropped": lambda client, session, *asked: self._dropped(*asked),
        }

    async def run(self, rate_rps: float, seconds: float) -> None:
        """Returns when all that was asked has ended."""
        end_s = time.monotonic() + seconds
        next_s = time.monotonic()
        async with (
            AsyncClient(self._address, retries=False) as client,
            client.session() as session,
            asyncio.TaskGroup() as group,
        ):
            while next_s < end_s:
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                group.create_task(self._one(client, session))
                next_s += self._rng.expovariate(rate_rps)

    async def _one(self, client: AsyncClient, session: AsyncSession) -> None:
        (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
        prompt, tokens = next(self._prompts)
        try:
            await self._kinds[kind](client, session, prompt, tokens)
        except ServerError as error:
            self.wrong.append(f"{kind}: {error}")
        self.ended[kind] += 1

    def _check(self, came: list[int], prompt: list[int], tokens: int, *, whole: bool) -> None:
        right = expected(prompt, tokens)
        if tuple(came) != (right if whole else right[: len(came)]):
            self.wrong.append(f"other tokens: {len(came)} came of {tokens}")

    async def _whole(
        self, stream: Callable[..., AsyncIterator[Chunk]], prompt: list[int], tokens: int, pause_s: float = 0.0
    ) -> None:
        came: list[int] = []
        async for chunk in stream(prompt, max_tokens=tokens, ignore_eos=True):
            came += chunk.token_ids
            if pause_s:
                await asyncio.sleep(pause_s)
        self._check(came, prompt, tokens, whole=True)

    async def _some(self, stream: Callable[..., AsyncIterator[Chunk]], prompt: list[int], tokens: int) -> None:
        came: list[int] = []
        enough = self._rng.randint(0, 4)
        async with contextlib.aclosing(
            cast(AsyncGenerator[Chunk], stream(prompt, max_tokens=tokens, ignore_eos=True))
        ) as chunks:
            async for chunk in chunks:
                came += chunk.token_ids
                if (enough := enough - 1) <= 0:
                    break
        self._check(came, prompt, tokens, whole=False)

    async def _by_deadline(self, stream: Callable[..., AsyncIterator[Chunk]], prompt: list[int], tokens: int) -> None:
        came: list[int] = []
        timeout_s = self._rng.uniform(0.05, 3.0)
        try:
            async for chunk in stream(prompt, timeout_s=timeout_s, max_tokens=tokens, ignore_eos=True):
                came += chunk.token_ids
        except ServerError as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise
            self._check(came, prompt, tokens, whole=False)
        else:
            self._check(came, prompt, tokens, whole=True)

    async def _dropped(self, prompt: list[int], tokens: int) -> None:
        client = AsyncClient(self._address, retries=False)

        async def ask() -> None:
            with contextlib.suppress(ServerError):
                async for _ in client.stream(prompt, max_tokens=tokens, ignore_eos=True):
                    pass

        asking = asyncio.create_task(ask())
        await asyncio.sleep(self._rng.uniform(0.0, 0.3))
        await client.close()
        await asyncio.gather(asking, return_exceptions=True)


async def capacity_rps(address: str, seconds: float) -> float:
    """What a closed loop has answered a second."""
    ended = 0

    def count(_: object) -> None:
        nonlocal ended
        ended += 1

    def requests() -> Iterator[tuple[int, LoadRequest]]:
        for number, (prompt, tokens) in zip(itertools.count(), prompts(0)):
            yield number, LoadRequest(prompt, {"max_tokens": tokens, "ignore_eos": True})

    began_s = time.monotonic()
    async with AsyncClient(address, retries=False) as client, client.session() as session:
        await Loop(session, began_s, timeout_s=None, on_result=count).closed(requests(), AT_ONCE, seconds)
    return ended / (time.monotonic() - began_s)


async def chaos(server: ServerProcess, until_s: float, seed: int) -> Counter[str]:
    """Kills and stops engines, each when the one before has been replaced, and none near the end."""
    rng, blows = random.Random(seed), Counter[str]()
    async with WatchedHealth().watching(server.address) as health:
        while True:
            await asyncio.sleep(rng.uniform(0.2, 0.4) * CHAOS_S)
            await health.turns(True)
            if time.monotonic() > until_s - CHAOS_S / 2:
                return blows
            if (pid := engine_pid(server)) is not None:
                number = rng.choice((signal.SIGKILL, signal.SIGSTOP))
                os.kill(pid, number)
                blows[number.name] += 1
                await health.turns(False)
            await asyncio.sleep(0.6 * CHAOS_S)


async def sample(server: ServerProcess, into: list[int]) -> None:
    while True:
        into.append(resident_bytes(server))
        await asyncio.sleep(1.0)


async def soaked(server: ServerProcess, seconds: float, seed: int) -> Found:
    capacity = await capacity_rps(server.address, 5.0)
    opened = descriptors(server)
    resident: list[int] = []
    arrivals = Arrivals(server.address, seed)
    sampling = asyncio.create_task(sample(server, resident))
    began_s = time.monotonic()
    _, blows = await asyncio.gather(arrivals.run(LOAD * capacity, seconds), chaos(server, began_s + seconds, seed))
    sampling.cancel()
    took_s = time.monotonic() - began_s
    return Found(capacity, took_s, arrivals.ended, arrivals.wrong, blows, resident, (opened, opened))


def soak(model: pathlib.Path, folder: pathlib.Path, seconds: float, seed: int = 0) -> tuple[Found, list[str]]:
    """Also faults of the server's own: log lines, a status, or something left behind, which raises AssertionError."""
    with server_process(model, *FLAGS, f"--admin_socket={folder / 'admin'}") as server:
        with grpc.insecure_channel(f"unix:{folder / 'admin'}") as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            left_behind(admin)
            quiet = left_behind(admin)
            found = asyncio.run(soaked(server, seconds, seed))
            settled(admin, quiet)
            found.descriptors = found.descriptors[0], descriptors(server)
        server.terminate()
        status, _, err = server.finish()
    # That an engine died is the front end's to say.
    own = [line for line in faults(err) if "engine" not in line]
    return found, own if status == 0 else [*own, f"exit status {status}"]


def report(facts: dict[str, object], found: Found, own: list[str]) -> str:
    mib = [round(each / 2**20, 1) for each in found.resident_bytes[:: max(1, len(found.resident_bytes) // 12)]]
    reached = "reached" if found.slope_bytes_per_h < _GOAL_BYTES_PER_H else "missed"
    lines = [
        "# Soak on the fake engine",
        "",
        ". ".join(f"{name}: {value}" for name, value in facts.items()),
        "",
        f"- {found.seconds / 60:.1f} minutes at {LOAD:.0%} of {found.capacity_rps:.1f} requests a second",
        f"- {found.ended.total()} requests: " + ", ".join(f"{n} {kind}" for kind, n in sorted(found.ended.items())),
        "- blows to the engine: " + ", ".join(f"{n} {name}" for name, n in sorted(found.blows.items())),
        f"- ended otherwise than they should: {len(found.wrong)}; faults of the server's own: {len(own)}",
        f"- front end's memory, MiB: {mib}; slope once warm {found.slope_bytes_per_h / 1e6:+.2f} MB an hour "
        f"(goal 1: {reached})",
        f"- descriptors: {found.descriptors[0]} before, {found.descriptors[1]} after; nothing else left behind",
    ]
    return "\n".join([*lines, *(f"  - {line}" for line in (found.wrong + own)[:20])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="stem of the JSON and Markdown files")
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, own = soak(write_tiny_model(pathlib.Path(folder)), pathlib.Path(folder), 60 * arguments.minutes)
    facts = provenance("python -m tests.benchmarks.soak", 0)
    facts |= {"grpc": grpc.__version__, "load_average": round(os.getloadavg()[0], 2)}
    text = report(facts, found, own)
    print(text)
    if arguments.output:
        stem = pathlib.Path(arguments.output)
        stem.with_suffix(".md").write_text(text)
        # `asdict` makes other counters of counters.
        data = {**facts, **vars(found), "slope_bytes_per_h": found.slope_bytes_per_h, "faults": own}
        stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
