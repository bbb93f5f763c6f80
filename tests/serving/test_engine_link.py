"""An engine process and the front end's hold on it: whatever befalls it, each token comes once and in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.runner.request import Request
from tests.serving.engines import FLAGS, check_whole, engine, requests, until


def test_answers_come_whole_and_figures_at_the_end(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            asked = requests(60, seed=1)
            for request in asked:
                link.submit(request)
            await heard.all_ended(60)
            check_whole(heard, asked)
            await until(lambda: link.stats().finished == 60)
            stats = link.stats()
            assert (stats.running, stats.waiting, stats.live_bytes) == (0, 0, 0)
            assert (await link.ask("stats"))["beside"]["measured_requests_per_s"] > 0
            with pytest.raises(ValueError, match="about: 'else' is no question"):
                await link.ask("else")
            stopped = await link.stop()
            assert stopped is not None
            assert stopped.figures["requests"] == 60
            assert [well for well, _ in heard.states] == [True]
            # The same process runs the next plan.
            pid = link.pid
            await link.build([f"--model={tiny_model}", *FLAGS, "--encode_batch=3"])
            assert link.pid == pid
            assert link.plan.schedule.encode_batch == 3

    asyncio.run(run())


def test_killed_again_and_again_no_token_is_lost_or_doubled(tiny_model: Path) -> None:
    kills = 30 if os.environ.get("EXEGPT_FULL") else 3

    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            asked: list[Request] = []
            for turn in range(kills):
                more = [
                    Request(f"{turn}-{request.id}", request.prompt_ids, request.sampling, time.monotonic())
                    for request in requests(40, seed=turn)
                ]
                asked += more
                for request in more:
                    link.submit(request)
                before = sum(map(len, heard.tokens.values()))
                # In the middle of answers: some told in part, some not begun.
                await until(lambda before=before: sum(map(len, heard.tokens.values())) > before + 60)
                assert link.pid is not None
                killed_s = time.monotonic()
                os.kill(link.pid, signal.SIGKILL)
                states = len(heard.states)
                await until(lambda states=states: len(heard.states) > states)
                assert (heard.states[-1][0], heard.states[-1][1] - killed_s < 2) == (False, True)
            await heard.all_ended(len(asked))
            check_whole(heard, asked)
            assert heard.states[-1][0]

    asyncio.run(run())


def test_a_stopped_process_shows_is_replaced_and_nobody_waits_past_the_deadline(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model, hung_s=4.0) as (link, heard):
            asked = requests(30, seed=3)
            for request in asked:
                link.submit(request)
            await until(lambda: heard.tokens)
            assert link.pid is not None
            stopped_s = time.monotonic()
            os.kill(link.pid, signal.SIGSTOP)
            link.submit(Request("late", (1, 2), Sampling(max_tokens=50), stopped_s, deadline_s=stopped_s + 0.5))
            await until(lambda: "late" in heard.ends)
            assert heard.ends["late"].reason == "deadline"
            assert time.monotonic() - stopped_s < 2.5
            await until(lambda: not heard.states[-1][0])
            assert heard.states[-1][1] - stopped_s < 2.5
            await heard.all_ended(31)
            check_whole(heard, asked)

    asyncio.run(run())


def test_cancelled_requests_are_not_asked_for_again(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            asked = requests(20, seed=4)
            for request in asked:
                link.submit(request)
            link.cancel(asked[0].id)
            await until(lambda: heard.tokens)
            link.cancel(asked[1].id)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGKILL)
            link.cancel(asked[2].id)
            await heard.all_ended(17)
            check_whole(heard, asked[3:])
            assert asked[0].id not in heard.tokens

    asyncio.run(run())


def test_what_cannot_be_encoded_again_is_told_so(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model, "--max_prompt_tokens=10") as (link, heard):
            link.submit(Request("long", (1,) * 9, Sampling(max_tokens=190)))
            await until(lambda: len(heard.tokens.get("long", ())) > 8)
            assert link.pid is not None
            os.kill(link.pid, signal.SIGKILL)
            await heard.all_ended(1)
            assert heard.ends["long"].reason == "abort"
            assert heard.ends["long"].detail.startswith("the engine was restarted in the middle of the answer (")

    asyncio.run(run())


def test_an_engine_that_never_lives_is_given_up(tiny_model: Path) -> None:
    async def run() -> None:
        async with engine(tiny_model) as (link, heard):
            for turn in range(3):
                await until(lambda: link.works)
                pid = link.pid
                assert pid is not None
                if turn == 2:
                    # It hears of the request no more: a token would be a sign of life.
                    os.kill(pid, signal.SIGSTOP)
                    link.submit(Request("x", (1, 2), Sampling(max_tokens=50)))
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: link.pid != pid and not link.works)
            assert "3 times without a token between" in await asyncio.wait_for(asyncio.shield(link.gone), 10)
            assert heard.ends["x"].reason == "abort"
            assert not heard.tokens

    asyncio.run(run())


def test_what_cannot_be_built_says_why(tmp_path: Path, tiny_model: Path) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match=r"model: .* is no directory"):
            async with engine(tmp_path / "absent"):
                pass
        with pytest.raises(ValueError, match="encode_batch"):
            async with engine(tiny_model, "--encode_batch=0"):
                pass

    asyncio.run(run())
