"""An engine process over the fake engine, requests for it, and what came of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from exegpt_jax.engine.api import Sampling
from exegpt_jax.runner.events import Event, Finished, Tokens
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.fake import answer
from serving.engine.link import EngineLink
from tests.serving.servers import VOCABULARY

FLAGS = ("--engine=fake", "--fake_step_s=0.005", "--decode_iterations=4", "--max_rows=16", "--cache_tokens=200")


class Heard:
    """What came, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Finished] = {}
        self.states: list[tuple[bool, float]] = []

    def on_events(self, events: list[Event]) -> None:
        for event in events:
            assert event.id not in self.ends, "nothing comes behind the end"
            if isinstance(event, Tokens):
                self.tokens.setdefault(event.id, []).extend(event.token_ids)
            else:
                self.ends[event.id] = event

    def on_state(self, well: bool) -> None:
        self.states.append((well, time.monotonic()))

    async def all_ended(self, count: int, timeout_s: float = 60.0) -> None:
        await until(lambda: len(self.ends) == count, timeout_s)


async def until(condition: object, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "still not so"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def engine(model: Path, *flags: str, hung_s: float = 10.0) -> AsyncIterator[tuple[EngineLink, Heard]]:
    heard = Heard()
    link = EngineLink(heard.on_events, heard.on_state, hung_s=hung_s)
    try:
        await link.build([f"--model={model}", *FLAGS, *flags])
        yield link, heard
    finally:
        await link.close()


def requests(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            str(number),
            tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))),
            Sampling(max_tokens=rng.randint(1, 70), stop_ids=(5, 77), min_tokens=rng.choice([0, 10])),
            arrival_s=time.monotonic(),
        )
        for number in range(count)
    ]


def check_whole(heard: Heard, asked: list[Request]) -> None:
    for request in asked:
        expected = answer(request.prompt_ids, request.sampling, VOCABULARY)
        assert tuple(heard.tokens[request.id]) == expected
        end = heard.ends[request.id]
        assert end.reason == ("stop" if expected[-1] in request.sampling.stop_ids else "length")
        assert end.completion_tokens == len(expected)
