"""`LLM` on the embedded model: real answers, in order, as a whole and as a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exegpt_jax import LLM
from exegpt_jax.testing import numbers_task as task

NUMBERS = (7, 38, 4217, 271_828_182, 123_456_789, 60_012, 5_005, 19)


@pytest.fixture(scope="module")
def llm(numbers_model: Path) -> Iterator[LLM]:
    with LLM(
        numbers_model,
        encode_batch=4,
        decode_iterations=4,
        decode_batch=4,
        max_rows=4,
        cache_tokens=48,
        max_prompt_tokens=16,
    ) as running:
        yield running


def test_answers_are_right_and_in_order(llm: LLM) -> None:
    completions = llm.generate([task.prompt(number) for number in NUMBERS], max_tokens=30)
    assert [completion.text.strip() for completion in completions] == [task.words(number) for number in NUMBERS]
    assert {completion.finish_reason for completion in completions} == {"stop"}


def test_a_stream_adds_up_to_the_answer(llm: LLM) -> None:
    (whole,) = llm.generate([task.prompt(123_456_789)], max_tokens=30)
    pieces = list(llm.stream(task.prompt(123_456_789), max_tokens=30))
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text


def test_parameters_of_a_prompt_win(llm: LLM) -> None:
    prompt = task.prompt(123_456_789)
    short, long = llm.generate([{"prompt": prompt, "max_tokens": 2}, prompt], max_tokens=30)
    assert short.completion_tokens == 2
    assert short.token_ids == long.token_ids[:2]
    assert (short.finish_reason, long.finish_reason) == ("length", "stop")


def test_a_seed_repeats_a_sampled_answer(llm: LLM) -> None:
    prompt = task.prompt(123_456_789)
    asked = {"prompt": prompt, "temperature": 2.0, "max_tokens": 20, "ignore_eos": True}
    answers = llm.generate([asked] * 8)
    assert len({answer.seed for answer in answers}) == 8
    assert len({answer.token_ids for answer in answers}) > 1  # the model is sure of itself: two alone can agree
    again = llm.generate([{**asked, "seed": answer.seed} for answer in reversed(answers)])
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in reversed(answers)]


def test_logprobs_come_one_per_token(llm: LLM) -> None:
    (completion,) = llm.generate([task.prompt(42)], max_tokens=10, logprobs=3)
    assert len(completion.logprobs) == len(completion.token_ids)
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(best for best, _ in entry.top) == token  # greedy
        assert entry.logprob == pytest.approx(entry.top[0][1], abs=1e-5)
        assert len(entry.top) == 3


def test_stop_strings_end_the_answer(llm: LLM) -> None:
    words = task.words(123_456_789).split()
    (completion,) = llm.generate([task.prompt(123_456_789)], max_tokens=30, stop=[words[2]])
    assert completion.stop_reason == words[2]
    assert completion.text.split() == words[:2]


def test_bad_prompts_are_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"^prompts\[1\]: temperature: 3 is not"):
        llm.generate(["5 ->", {"prompt": "6 ->", "temperature": 3}])
    with pytest.raises(ValueError, match="prompts: is one text"):
        llm.generate("5 ->")
    with pytest.raises(ValueError, match="colour: unknown parameter"):
        llm.stream("5 ->", colour="red")


def test_several_threads_share_it(llm: LLM) -> None:
    found: dict[int, list[str]] = {}

    def ask(first: int) -> None:
        numbers = range(first, first + 5)
        completions = llm.generate([task.prompt(number) for number in numbers], max_tokens=30)
        found[first] = [completion.text.strip() for completion in completions]

    threads = [threading.Thread(target=ask, args=(first,)) for first in (100, 2000, 30_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for first in (100, 2000, 30_000):
        assert found[first] == [task.words(number) for number in range(first, first + 5)]


def test_leaving_a_stream_early_frees_its_row(llm: LLM) -> None:
    stream = llm.stream(task.prompt(123_456_789), max_tokens=30, ignore_eos=True)
    next(stream)
    stream.close()
    assert len(llm.generate([task.prompt(number) for number in NUMBERS], max_tokens=30)) == len(NUMBERS)
