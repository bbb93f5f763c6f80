"""Parameters: vLLM's names and ranges, defaults, and refusals in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.testing.tiny_text import EOS_ID, write_tiny_text
from exegpt_jax.text.answer import Answer
from exegpt_jax.text.parameters import PARAMETERS, Parameters, resolve
from exegpt_jax.text.prompts import ModelText


def check(given: Mapping[str, object], defaults: Mapping[str, float] | None = None, room: int = 100) -> Parameters:
    return resolve(given, defaults=defaults or {}, eos_ids=(1,), vocab_size=320, room_tokens=room)


def test_nothing_given_is_greedy_with_a_drawn_seed() -> None:
    first, second = check({}), check({})
    assert first.sampling.temperature == 0.0
    assert first.sampling.max_tokens == 100
    assert check({}, room=1000).sampling.max_tokens == 256
    assert first.sampling.stop_ids == (1,)
    assert first.sampling.seed != second.sampling.seed


def test_the_models_defaults_stand_behind_the_requests_own() -> None:
    defaults = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
    sampling = check({"top_k": -1, "seed": -5}, defaults).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.7, 0, 0.9, -5)


def test_greedy_ignores_what_only_sampling_reads() -> None:
    sampling = check({"temperature": 1e-6, "top_p": 0.5, "top_k": 3, "min_p": 0.1}).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 0, 1.0, 0.0)


def test_everything_at_once() -> None:
    found = check(
        {
            "max_tokens": 9,
            "min_tokens": 2,
            "temperature": 1,
            "stop": "x",
            "stop_token_ids": [5, 5],
            "ignore_eos": True,
            "logit_bias": {"7": -100, 3: 1.5},
            "logprobs": 0,
            "n": 1,
            "include_stop_str_in_output": True,
        }
    )
    assert found.stop == ("x",)
    assert found.include_stop
    assert found.sampling.stop_ids == (5,)
    assert found.sampling.logit_bias == ((3, 1.5), (7, -100.0))
    assert found.sampling.logprobs == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 2.1, r"temperature: 2.1 is not a number in \[0, 2\]"),
        ("temperature", math.nan, "temperature: nan"),
        ("temperature", True, "temperature: True"),
        ("temperature", "0.5", "temperature: '0.5'"),
        ("temperature", 10**400, "temperature: a number beyond 64 bits"),
        ("top_p", 0, r"top_p: 0 is not a number in \(0, 1\]"),
        ("top_k", -2, "top_k: -2 is not an integer of at least -1"),
        ("min_p", -0.1, "min_p: -0.1"),
        ("presence_penalty", 3, "presence_penalty: 3"),
        ("frequency_penalty", -3, "frequency_penalty: -3"),
        ("repetition_penalty", 0, "repetition_penalty: 0 is not a finite number above 0"),
        ("repetition_penalty", math.inf, "repetition_penalty: inf"),
        ("seed", 2**63, "seed: a number beyond 64 bits is not an integer in"),
        ("max_tokens", 0, "max_tokens: 0 is not an integer of at least 1"),
        ("max_tokens", 2.0, "max_tokens: 2.0"),
        ("max_tokens", 101, "max_tokens: 101 exceeds the 100 tokens that fit"),
        ("min_tokens", 101, r"min_tokens: 101 is not an integer in \[0, max_tokens=100\]"),
        ("stop", [], None),
        ("stop", [""], r"stop\[0\]: '' is not text"),
        ("stop", list("abcde"), "stop: a list is not one string or a list of at most 4"),
        ("stop_token_ids", [320], r"stop_token_ids\[0\]: 320 is no token id in \[0, 319\]"),
        ("stop_token_ids", list(range(2, 20)), "stop_token_ids: 18 given; at most 15"),
        ("logprobs", 21, r"logprobs: 21 is not an integer in \[0, 20\]"),
        ("logprobs", True, "logprobs: True"),
        ("logit_bias", {"x": 1}, r"logit_bias\[0\]: 'x' is no token id"),
        ("logit_bias", {"1": 101}, "logit_bias: 101 is not a number in"),
        ("ignore_eos", 1, "ignore_eos: 1 is not true or false"),
        ("n", 2, r"n: 2 is not an integer in \[1, 1\]"),
        ("temprature", 1, "temprature: unknown parameter; known are max_tokens, "),
    ],
)
def test_refusals_name_field_value_and_range(name: str, value: object, message: str | None) -> None:
    if message is None:
        check({name: value})
        return
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        check({name: value})
    assert "\n" not in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(fields=st.dictionaries(st.sampled_from(PARAMETERS), JSON, max_size=4))
def test_any_json_is_taken_or_refused_in_one_line(fields: dict[str, object]) -> None:
    refusal, sampling = "", None
    try:
        sampling = check(fields).sampling
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 500
    assert sampling is None or (0 <= sampling.temperature <= 2 and 1 <= sampling.max_tokens <= 100)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    directory = tmp_path_factory.mktemp("tiny_text")
    write_tiny_text(directory)
    return ModelText.load(directory, vocab_size=320, max_prompt_tokens=16, cache_tokens=24)


def test_prompts_in_three_forms(text: ModelText) -> None:
    assert text.prepare({"prompt": [4, 5]}).prompt_ids == (4, 5)
    assert text.prepare({"prompt": "a"}).prompt_ids[0] == 0
    chat = text.prepare({"messages": [{"role": "user", "content": "a"}]}).prompt_ids
    assert chat[:2] == (0, 2)
    assert chat[-2:] == (EOS_ID, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: give exactly one"),
        ({"prompt": "a", "messages": []}, "prompt: give exactly one"),
        ({"prompt": 5}, "prompt: is a int, not a list of token ids"),
        ({"prompt": []}, "prompt: has 0 tokens; 1 to 16 fit"),
        ({"prompt": [1] * 17}, "prompt: has 17 tokens"),
        ({"prompt": [-1]}, r"prompt\[0\]: -1 is no token id"),
        ({"prompt": "x" * 2000}, "prompt: has 2000 characters"),
        ({"prompt": [1] * 10, "max_tokens": 15}, "max_tokens: 15 exceeds the 14 tokens that fit behind this prompt"),
    ],
)
def test_prompts_that_are_refused(text: ModelText, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text.prepare(fields)


def answer(text: ModelText, words: str, **fields: object) -> tuple[str, int, int | str | None]:
    assert text.tokenizer is not None
    growing = Answer(check(fields), text.tokenizer)
    shown, kept = "", 0
    for token in [*text.tokenizer.encode(words, special_tokens=False), EOS_ID]:
        piece = growing.push([token])
        shown, kept = shown + piece.text, kept + len(piece.token_ids)
        if piece.ending is not None:
            return shown, kept, piece.ending.stop_reason
    final = growing.finish("stop", EOS_ID)
    assert final.ending is not None
    return shown + final.text, kept, final.ending.stop_reason


def test_a_stop_token_stands_in_the_ids_but_not_in_the_text(text: ModelText) -> None:
    shown, kept, stop = answer(text, "ab")
    assert (shown, kept, stop) == ("ab", 3, EOS_ID)
    assert answer(text, "ab", skip_special_tokens=False)[0] == "ab"
    assert answer(text, "ab", skip_special_tokens=False, include_stop_str_in_output=True)[0] == "ab</s>"


def test_a_stop_string_cuts_text_and_ids(text: ModelText) -> None:
    assert answer(text, "xyzxyz", stop=["zx"]) == ("xy", 4, "zx")
    assert answer(text, "xyzxyz", stop=["zx"], include_stop_str_in_output=True) == ("xyzx", 4, "zx")
    assert answer(text, "xyzxyz", stop=["x"], min_tokens=1) == ("xyz", 4, "x")
