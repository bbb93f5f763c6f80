"""Killed and stopped engines behind a server under load, as its clients see it: nothing is lost, doubled or late."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path

from tests.serving.servers import ServerProcess, engine_pid, server_process
from tests.serving.standing_load import StandingLoad, WatchedHealth

FLAGS = ("--engine=fake", "--fake_step_s=0.005", "--decode_iterations=4", "--max_rows=16", "--cache_tokens=200")


async def befallen(server: ServerProcess, load: StandingLoad, numbers: list[signal.Signals]) -> dict[str, list[float]]:
    """Sends each signal to the engine of the moment; seconds until health said so, and until it served again."""
    took_s: dict[str, list[float]] = {"NOT_SERVING": [], "SERVING": []}
    async with load.standing(), WatchedHealth().watching(server.address) as health:
        for number in numbers:
            await health.turns(True)
            await load.more(60)
            pid = engine_pid(server)
            assert pid is not None
            sent_s = time.monotonic()
            os.kill(pid, number)
            took_s["NOT_SERVING"].append(await health.turns(False) - sent_s)
            took_s["SERVING"].append(await health.turns(True) - sent_s)
        await load.more(60)
    return took_s


def test_killed_and_stopped_under_load(tiny_model: Path, full: bool) -> None:
    numbers = [signal.SIGKILL, signal.SIGSTOP] * 15 if full else [signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]
    with server_process(tiny_model, *FLAGS) as server:
        load = StandingLoad(server.address, tiny_model)
        took_s = asyncio.run(befallen(server, load, numbers))
        server.terminate()
        status, out, err = server.finish()
    assert load.wrong == []
    # The deadlines of some ended them, or the test would not show that they are kept.
    assert 0 < load.deadlines < load.ended
    assert (status, out.splitlines()[-1]) == (0, "stopped")
    assert "Traceback" not in err
    for state, seconds in took_s.items():
        print(f"{state}: median {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s, of {len(seconds)}")
    # Of a machine that does other things too; the full count is for one that does not.
    assert max(took_s["NOT_SERVING"]) < (2.0 if full else 5.0)
