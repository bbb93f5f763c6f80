"""The embedded model: its task, its files, and that it answers numbers that training never saw."""

from __future__ import annotations

import json
import pathlib
import random

from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.testing import numbers_task as task
from exegpt_jax.text.tokenizer import Tokenizer

numbers = st.integers(1, task.MAX_DIGITS).flatmap(lambda digits: st.integers(0, 10**digits - 1))


def read_back(text: str) -> int:
    """The number that words say, by summing as one hears them: another way than `task.words` goes."""
    values = {word: i for i, word in enumerate(task.ONES)} | {word: 20 + 10 * i for i, word in enumerate(task.TENS)}
    total = group = 0
    for word in text.split():
        if word == "hundred":
            group *= 100
        elif word in ("thousand", "million"):
            total, group = total + group * (1000 if word == "thousand" else 10**6), 0
        else:
            group += values[word]
    return total + group


@given(numbers)
def test_words_say_the_number(number: int) -> None:
    assert read_back(task.words(number)) == number


def test_the_example_of_the_task() -> None:
    assert task.prompt(4217) == "4217 ->"
    assert task.words(4217) == "four thousand two hundred seventeen"


def test_a_tenth_is_held_out_and_draws_keep_to_their_side() -> None:
    share = sum(task.held_out(n) for n in range(100, 20_100)) / 20_000
    assert 0.08 < share < 0.12
    rng = random.Random(0)
    for unseen in (True, False):
        drawn = [task.draw(rng, 3, 9, unseen=unseen) for _ in range(200)]
        assert all(task.held_out(n) == unseen for n in drawn)
        assert {len(str(n)) for n in drawn} == set(range(3, 10))


@given(number=numbers)
def test_tokenizer_keeps_text_and_takes_digits_one_by_one(numbers_model: pathlib.Path, number: int) -> None:
    tokenizer = Tokenizer(numbers_model)
    text = f"{task.prompt(number)} {task.words(number)}"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == 1 + len(str(number)) + 1 + len(task.words(number).split())


def test_directory_is_a_small_hugging_face_one(numbers_model: pathlib.Path) -> None:
    assert sum(path.stat().st_size for path in numbers_model.iterdir()) < 6_000_000
    config = json.loads((numbers_model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((numbers_model / "generation_config.json").read_text())["eos_token_id"] == 2
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors"):
        assert (numbers_model / name).is_file()


def test_answers_numbers_it_never_saw(numbers_model: pathlib.Path, full: bool) -> None:
    from exegpt_jax.llm import LLM

    rng = random.Random(7)
    asked = [task.draw(rng, 3, task.MAX_DIGITS, unseen=True) for _ in range(2000 if full else 200)]
    with LLM(
        numbers_model, encode_batch=16, decode_iterations=8, max_rows=16, cache_tokens=32, max_prompt_tokens=11
    ) as llm:
        answers = llm.generate([task.prompt(n) for n in asked], max_tokens=20, temperature=0)
    right = [a.text == task.words(n) and a.finish_reason == "stop" for a, n in zip(answers, asked, strict=True)]
    assert sum(right) >= 0.99 * len(asked)
