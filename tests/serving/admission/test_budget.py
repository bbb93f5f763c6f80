"""What the queue holds: limits from the plan, sizes beside measured memory, shares that leave room."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.runner.request import Request
from serving.admission.budget import DEFAULT_BYTES, QueueLimits, Size, check_alone, lacking, size_of, within_share
from tests.serving.servers import CACHE_TOKENS, fake_service


def request_of(prompt_tokens: int, max_tokens: int, biases: int = 0) -> Request:
    bias = tuple((token, token / 7) for token in range(biases))
    # No two token ids share an object, as in a vocabulary of any size.
    ids = tuple(1000 + token for token in range(prompt_tokens))
    return Request("1", ids, Sampling(max_tokens=max_tokens, logit_bias=bias))


@pytest.mark.parametrize(("tokens", "biases"), [(100, 0), (20_000, 0), (100, 250)])
def test_the_estimate_of_memory_covers_what_a_request_holds(tokens: int, biases: int) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        request = request_of(tokens, 10, biases)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    estimate = size_of(request).bytes
    assert held <= estimate <= 2 * held + 32 * 2**10


def test_limits_without_a_word_follow_from_the_plan(tiny_model: Path) -> None:
    plan = fake_service(tiny_model).plan
    assert QueueLimits().resolved(plan, 64) == Size(64 * CACHE_TOKENS // 2, DEFAULT_BYTES)
    # One request always fits.
    assert QueueLimits().resolved(plan, 1).tokens == CACHE_TOKENS
    assert QueueLimits(7, 9).resolved(plan, 64) == Size(7, 9)


def test_what_no_queue_holds_is_named_and_what_is_full_is_said() -> None:
    size = size_of(request_of(30, 20))
    assert size.tokens == 50
    with pytest.raises(
        ValueError, match=r"max_tokens: prompt and answer may come to 50 tokens, .* \(max_queued_tokens"
    ):
        check_alone(size, Size(49, 2**30))
    with pytest.raises(ValueError, match=r"prompt: the request takes \d+ bytes, .* \(max_queued_bytes"):
        check_alone(size, Size(50, size.bytes - 1))
    check_alone(size, size)
    limits = Size(100, 2 * size.bytes)
    assert lacking(size, size, limits) is None
    assert lacking(size, Size(51, 0), limits) == ("QUEUE_TOKENS_FULL", "51 tokens are waiting, of at most 100")
    assert (lacking(size, Size(0, size.bytes + 1), limits) or ("",))[0] == "QUEUE_BYTES_FULL"


@pytest.mark.parametrize("greedy", [1, 2, 10])
def test_greedy_keys_leave_room_for_whoever_comes_next(greedy: int) -> None:
    limit, held = 1000, [0] * greedy
    for turn in range(20_000):
        key = turn % greedy
        held[key] += sum(held) < limit and within_share(held[key], sum(held), limit)
    assert all(abs(each - limit * 4 / (1 + 4 * greedy)) <= 4 for each in held)
    assert sum(held) < limit
    assert within_share(0, sum(held), limit)
