"""Who is next: shares against the bound of start-time fair queueing, priorities against sorting, nobody starves."""

from __future__ import annotations

import collections
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.fair_queue import OLDEST_EVERY, FairQueue

KEYS = ("a", "b", "c")


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 50)), min_size=2, max_size=120))
def test_two_keys_that_wait_are_given_the_same_but_for_a_request_of_each(asked: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, (key, cost) in enumerate(asked):
        queue.push(str(number), (key, cost), key=key, priority=0, cost=cost)
    left = collections.Counter(key for key, _ in asked)
    largest = {key: max((cost for each, cost in asked if each == key), default=0) for key in KEYS}
    given_tokens: collections.Counter[str] = collections.Counter()
    while len(queue):
        waiting = [key for key in KEYS if left[key]]
        for one, other in itertools.combinations(waiting, 2):
            assert abs(given_tokens[one] - given_tokens[other]) <= largest[one] + largest[other]
        key, cost = queue.pop()
        given_tokens[key] += cost
        left[key] -= 1


def test_idling_saves_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(f"early{number}", "early", key="early", priority=0, cost=10)
    assert {queue.pop() for _ in range(50)} == {"early"}
    for number in range(50):
        queue.push(f"late{number}", "late", key="late", priority=0, cost=10)
    after = [queue.pop() for _ in range(40)]
    assert after.count("late") == after.count("early") == 20


def test_what_was_used_counts_and_not_what_was_expected() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(60):
        for key in ("short", "whole"):
            queue.push(f"{key}{number}", key, key=key, priority=0, cost=100)
    taken: collections.Counter[str] = collections.Counter()
    for _ in range(80):
        key = queue.pop()
        taken[key] += 1
        # Answers of the one end after a third of what was expected.
        queue.settle(key, -67 if key == "short" else 0)
    assert taken["short"] == pytest.approx(3 * taken["whole"], rel=0.1)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_priorities_are_a_stable_sort_but_for_the_turns_of_the_oldest(
    priorities: list[int], chance: random.Random
) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, priority in enumerate(priorities):
        queue.push(str(number), number, key=None, priority=priority, cost=1)
    left = list(range(len(priorities)))
    for turn in range(1, len(priorities) + 1):
        if left and chance.random() < 0.2:
            gone = left.pop(chance.randrange(len(left)))
            assert queue.remove(str(gone)) == gone
            assert queue.remove(str(gone)) is None
        if not left:
            break
        expected = min(left) if turn % OLDEST_EVERY == 0 else min(left, key=lambda each: (priorities[each], each))
        assert queue.pop() == expected
        left.remove(expected)
    assert len(queue) == len(left)


@pytest.mark.parametrize("older", [0, 3, 10])
def test_starvation_is_bounded(older: int) -> None:
    """However many urgent ones come, whoever has n older ones before it goes within 8 (n + 1)."""
    queue: FairQueue[str] = FairQueue()
    for number in range(older):
        queue.push(f"older{number}", "older", key=None, priority=5, cost=1)
    queue.push("it", "it", key=None, priority=9, cost=1)
    for turn in range(1, OLDEST_EVERY * (older + 1) + 1):
        queue.push(f"urgent{turn}", "urgent", key=None, priority=-1, cost=1)
        if queue.pop() == "it":
            break
    else:
        pytest.fail("it starved")
    assert turn == OLDEST_EVERY * (older + 1)


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 1)), max_size=6 * OLDEST_EVERY),
    st.integers(0, 30),
    st.sampled_from(KEYS),
    st.integers(0, 1),
)
def test_the_place_of_a_newcomer_is_known(asked: list[tuple[str, int]], gone: int, key: str, priority: int) -> None:
    """Within one request of each other key, for requests alike; the turns of the oldest apart."""
    queue: FairQueue[str] = FairQueue()
    for number, (each, level) in enumerate(asked):
        queue.push(str(number), str(number), key=each, priority=level, cost=10)
    for _ in range(min(gone, len(queue))):
        queue.pop()
    ahead = queue.ahead_of(key, priority)
    others = len({asked[int(name)][0] for name in queue} - {key})
    turns = len(queue) // OLDEST_EVERY + len(KEYS)
    queue.push("it", "it", key=key, priority=priority, cost=10)
    assert abs(drained(queue).index("it") - ahead) <= others + turns * len(KEYS)


def test_nothing_is_kept_of_keys_that_have_gone() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.push(str(number), "x", key=f"key{number}", priority=0, cost=5)
        queue.push(f"{number}+", "y", key="steady", priority=0, cost=5)
        queue.pop()
        queue.pop()
    assert len(queue._tags) <= 2
    assert not queue._flows
