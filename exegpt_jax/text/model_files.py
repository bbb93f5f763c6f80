"""The small JSON files of a model directory that concern text: which tokens end it, and the default sampling.

`generation_config.json` speaks first, then `config.json`, then `tokenizer_config.json`. None of them is required here:
a directory without them serves token ids.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_SAMPLING_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """What the model directory says about text.

    Attributes:
      eos_ids: tokens that end a sequence, as ids; empty where only `eos_token` (a string) is known.
      special: names such as "bos_token" -> their text, from tokenizer_config.json.
      add_bos_token: tokenizer_config.json asks for it explicitly.
      chat_template: jinja2 source, or None.
      sampling: default parameters under the names users give.
    """

    eos_ids: tuple[int, ...]
    special: Mapping[str, str]
    add_bos_token: bool
    chat_template: str | None
    sampling: Mapping[str, float]


def read_text_files(directory: Path) -> TextFiles:
    """Reads them. Raises ValueError with one line for a file that is not what it should be."""
    generation = read_object(directory / "generation_config.json")
    config = read_object(directory / "config.json")
    tokenizer = read_object(directory / "tokenizer_config.json")
    eos_ids = _ids(generation, "generation_config.json") or _ids(config, "config.json")
    special = {name: _token_text(tokenizer[name]) for name in _TOKEN_NAMES if tokenizer.get(name) is not None}
    return TextFiles(
        eos_ids=eos_ids,
        special=special,
        add_bos_token=tokenizer.get("add_bos_token") is True,
        chat_template=_chat_template(directory, tokenizer),
        sampling=_sampling(generation),
    )


def read_object(path: Path) -> Mapping[str, object]:
    """The JSON object in `path`, empty if the file is absent."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: is no JSON ({error}); replace the file") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: holds a {type(found).__name__}, not an object; replace the file")
    return found


def _ids(config: Mapping[str, object], name: str) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in values):
        raise ValueError(f"{name}: eos_token_id={value!r} is no token id; correct the file")
    return tuple(dict.fromkeys(values))


def _token_text(value: object) -> str:
    """A special token is written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"tokenizer_config.json: special token {value!r} is neither text nor an object with content")
    return text


def _chat_template(directory: Path, tokenizer: Mapping[str, object]) -> str | None:
    """A file of its own, a string, or a list of named templates of which `default` is ours."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = tokenizer.get("chat_template")
    if isinstance(value, list):
        named = {
            item["name"]: item["template"]
            for item in value
            if isinstance(item, dict) and {"name", "template"} <= item.keys()
        }
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"tokenizer_config.json: chat_template is a {type(value).__name__}, not text")
    return value


def _sampling(generation: Mapping[str, object]) -> Mapping[str, float]:
    """Defaults as transformers reads them: without `do_sample: true` the model is greedy whatever its temperature."""
    found: dict[str, float] = {}
    for name in _SAMPLING_NAMES:
        value = generation.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            if value is not None:
                raise ValueError(f"generation_config.json: {name}={value!r} is no number; correct the file")
            continue
        found[name] = value
    if generation.get("do_sample") is True:
        found.setdefault("temperature", 1.0)
    else:
        found.pop("temperature", None)
    return found
