"""Engines that die or fall silent where nobody expects it: while they are built, again and again, or when they end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from serving.engine import link as links
from serving.engine.deaths import Deaths
from serving.engine.link import EngineLink
from tests.serving.engines import check_whole, engine, requests, until


async def signalled_while_built(link: EngineLink, number: signal.Signals) -> None:
    """Sends the signal to the process that takes the place of the one at hand, once it is there."""
    before = link.pid
    await until(lambda: link.pid not in (None, before))
    assert link.pid is not None
    assert not link.works
    os.kill(link.pid, number)


def test_killed_at_work_and_twice_while_it_is_built(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            asked = requests(60, seed=7)
            for request in asked:
                link.submit(request)
            # Most are told in part, so that nothing may be lost of them either.
            await until(lambda: len(heard.tokens) >= 16)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGKILL)
            await signalled_while_built(link, signal.SIGKILL)
            await signalled_while_built(link, signal.SIGKILL)
            await heard.all_ended(60)
            check_whole(heard, asked)
            assert [well for well, _ in heard.states] == [True, False, True]

    asyncio.run(run())


def test_one_that_never_gets_built_is_given_up(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            (asked,) = requests(1, seed=8)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGKILL)
            link.submit(asked)
            for _ in range(3):
                await signalled_while_built(link, signal.SIGKILL)
            assert "signal 9, 3 times while it was built" in await asyncio.wait_for(asyncio.shield(link.gone), 10)
            assert heard.ends[asked.id].reason == "abort"

    asyncio.run(run())


def test_one_that_falls_silent_while_it_is_built_is_replaced(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            asked = requests(20, seed=9)
            for request in asked:
                link.submit(request)
            await until(lambda: heard.tokens)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGKILL)
            await signalled_while_built(link, signal.SIGSTOP)
            stopped = link.pid
            with monkeypatch.context() as patience:
                patience.setattr(links, "_BUILD_HUNG_S", 1.0)
                await until(lambda: link.pid != stopped)
            await heard.all_ended(20)
            check_whole(heard, asked)

    asyncio.run(run())


def test_one_that_falls_silent_holds_up_no_end(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model, hung_s=2.0) as (link, heard):
            for request in requests(20, seed=10):
                link.submit(request)
            await until(lambda: heard.tokens)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGSTOP)
            begin_s = time.monotonic()
            assert await asyncio.wait_for(link.stop(), 30) is None
            assert time.monotonic() - begin_s < 15
            assert len(heard.ends) == 20

    asyncio.run(run())


def test_deaths_count_in_a_row() -> None:
    deaths = Deaths()
    for at_s in (10.0, 20.0, 30.0):
        deaths.built(at_s)
        assert (deaths.died(at_s + 1) is None) == (at_s < 30)
    deaths.built(40.0)
    deaths.told()
    assert deaths.died(41.0) is None
    # Nobody asks for days, and each time it is killed.
    for day in range(10):
        deaths.built(day * 86400.0)
        assert deaths.died((day + 1) * 86400.0) is None
    assert [deaths.died(0.0) is None for _ in range(3)] == [True, True, False]
