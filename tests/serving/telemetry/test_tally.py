"""What is counted of requests on a live server: each one once, however it ended, and nothing of it stays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import Client, ServerError
from serving.telemetry.histogram import Histogram
from serving.telemetry.tally import Ended
from tests.serving.servers import RunningServer, fake_service, running_server


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "still not so"
        time.sleep(0.005)


def test_a_histogram_counts_bounds_in_and_many_at_once() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, times in ((1.0, 1), (1.5, 3), (9.0, 2)):
        histogram.observe(value, times)
    assert histogram.cumulative() == [(1.0, 1), (2.0, 4), (float("inf"), 6)]
    assert (histogram.count, histogram.sum) == (6, 1.0 + 4.5 + 18.0)


@pytest.fixture
def watched(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server(fake_service(tiny_model, fake_step_s=0.002), max_requests=4) as server:
        yield server


def test_every_request_is_counted_once_by_how_it_ended(watched: RunningServer) -> None:
    ended: list[Ended] = []
    watched.call(watched.frontend.on_ended.append, ended.append)
    tally = watched.frontend.tally
    with Client(watched.address, retries=False) as client:
        replies = [client.generate(f"p {n}", request_id=f"whole-{n}", max_tokens=20, ignore_eos=True) for n in range(3)]
        text = client.generate("stop", max_tokens=40, ignore_eos=True).text
        client.generate("stop", request_id="stopped", max_tokens=40, ignore_eos=True, stop=text[5:8])
        stream = client.stream("left", request_id="left", max_tokens=200, ignore_eos=True)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        with pytest.raises(ServerError, match="DEADLINE"):
            client.generate("late", timeout_s=0.3, max_tokens=200, ignore_eos=True)
        with pytest.raises(ServerError, match="INVALID"):
            client.generate("bad", top_p=7.0)
        watched.call(setattr, watched.frontend, "max_requests", 0)
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            client.generate("no room")
    until(lambda: len(ended) == 6)
    found = {each.request_id: each for each in ended}
    assert [found[f"whole-{n}"].outcome for n in range(3)] == ["length"] * 3
    assert (found["stopped"].outcome, found["left"].outcome) == ("stop", "abort")
    assert (tally.outcomes["invalid"], tally.outcomes["refused"]) == (1, 2)
    counted = {reason: count for reason, count in tally.refusals.items() if count}
    assert counted == {"INVALID_ARGUMENT": 1, "DEADLINE_UNREACHABLE": 1, "QUEUE_FULL": 1}
    assert tally.first_token_s.count == len(ended)
    assert tally.request_s.count == tally.answered_tokens.count == 5
    assert found["whole-0"].completion_tokens == len(replies[0].token_ids) == 20
    # Each token but an answer's first, and those of its hand-over, has a gap before it.
    assert tally.generated_tokens == sum(each.completion_tokens for each in ended)
    assert 0 < tally.between_tokens_s.count < tally.generated_tokens
    for each in ended:
        assert each.arrival_s <= each.encode_start_s <= each.first_token_s <= each.last_token_s <= each.ended_s
    assert not watched.frontend.live


def test_who_looks_on_cannot_harm(watched: RunningServer) -> None:
    def fall(ended: Ended) -> None:
        raise RuntimeError("a fault of who looks on")

    watched.call(watched.frontend.on_ended.append, fall)
    with contextlib.closing(Client(watched.address)) as client:
        assert client.generate("a", max_tokens=3, ignore_eos=True).token_ids
        assert client.generate("b", max_tokens=3, ignore_eos=True).token_ids
    until(lambda: watched.frontend.tally.outcomes["length"] == 2)
