"""The tokenizer, the incremental decoder against decoding at once, and which tokens end a sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.testing.tiny_text import BOS_ID, EOS_ID, write_tiny_text
from exegpt_jax.text.model_files import read_text_files
from exegpt_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_text")
    write_tiny_text(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> str:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return "".join([stream.push(token) for token in ids] + [stream.flush()])


def test_round_trip_with_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("caf\u00e9 \U0001f600")
    assert ids[0] == BOS_ID == tokenizer.bos_id
    assert tokenizer.eos_ids == (EOS_ID,)
    assert tokenizer.decode(ids) == "caf\u00e9 \U0001f600"
    assert tokenizer.encode("a", special_tokens=False) == ids[:0] + tokenizer.encode("a")[1:]


@given(text=st.text(max_size=80))
def test_stream_gives_what_decoding_at_once_gives(tokenizer: Tokenizer, text: str) -> None:
    ids = list(tokenizer.encode(text, special_tokens=False))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids) == text


@given(ids=st.lists(st.integers(0, 319), max_size=12), skip=st.booleans())
def test_stream_of_any_tokens_is_whole(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    """Also of bytes that form no character: the replacement characters come out where decoding at once puts them."""
    assert streamed(tokenizer, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_rubbish_is_not_held_for_ever(tokenizer: Tokenizer) -> None:
    (broken,) = {token for token in range(4, 260) if tokenizer.decode([token]) == "\ufffd"} & {
        tokenizer.encode("\u00ff", special_tokens=False)[0]
    }
    stream = tokenizer.stream()
    assert "".join(stream.push(broken) for _ in range(100))


def test_nothing_incomplete_is_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f4a9", special_tokens=False)
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 1) + ["\U0001f4a9"]


def test_lone_surrogate_is_refused_in_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="prompt: is not valid Unicode"):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [({"eos_token_id": [7, 8]}, {"eos_token_id": 5}, (7, 8)), ({}, {"eos_token_id": 5}, (5,)), ({}, {}, (EOS_ID,))],
)
def test_end_of_sequence_comes_from_the_first_file_that_names_one(
    tmp_path: Path, generation: dict, config: dict, expected: tuple[int, ...]
) -> None:
    write_tiny_text(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Tokenizer(tmp_path).eos_ids == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("generation_config.json", '{"eos_token_id": "x"}', "generation_config.json: eos_token_id='x' is no token id"),
        ("generation_config.json", '{"temperature": []}', "generation_config.json: temperature"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is no JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: holds a list"),
        ("tokenizer.json", "{}", "tokenizer.json: is no tokenizer"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_tiny_text(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: missing"):
        Tokenizer(tmp_path)


def test_default_sampling_follows_do_sample(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "top_p": 0.9}))
    assert read_text_files(tmp_path).sampling == {"temperature": 1.0, "top_p": 0.9}
    path.write_text(json.dumps({"temperature": 0.7, "top_p": 0.9}))
    assert read_text_files(tmp_path).sampling == {"top_p": 0.9}
