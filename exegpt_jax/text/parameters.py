"""What users may ask for, under vLLM's names and ranges, resolved once into `Sampling` for the engine.

Generate, serve and `LLM` all come through `resolve`, so a parameter means the same, is refused with the same line, and
defaults to the same value everywhere: first the request's own, then the model's `generation_config.json`, then greedy.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

from exegpt_jax.engine.api import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS, Sampling

DEFAULT_MAX_TOKENS = 256
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
_GREEDY_BELOW = 1e-5
_INT64 = 2**63
_DRAWN_SEED_BITS = 63

PARAMETERS: tuple[str, ...] = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "n",
)
"""Every parameter a request may carry."""

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class Parameters:
    """One request's parameters with every default resolved.

    Attributes:
      sampling: what the engine needs.
      stop: strings that end the answer.
      include_stop: the stop string or stop token stays in the text.
      skip_special_tokens: special tokens leave no text.
      seed_drawn: the seed was drawn here and matters, so whoever asked should be told it.
    """

    sampling: Sampling
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    seed_drawn: bool = False


def resolve(
    given: Mapping[str, object],
    *,
    defaults: Mapping[str, float],
    eos_ids: tuple[int, ...],
    vocab_size: int,
    room_tokens: int,
) -> Parameters:
    """Checks what a request carries and fills in the rest.

    Args:
      given: the request's parameters; None counts as absent.
      defaults: the model's own (`TextFiles.sampling`).
      eos_ids: tokens that end a sequence.
      vocab_size: token ids lie below it.
      room_tokens: tokens that fit behind the prompt.

    Raises:
      ValueError: one line that names the field, its value and what is allowed.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(set(fields) - set(PARAMETERS))
    if unknown:
        raise ValueError(f"{unknown[0]:.60}: unknown parameter; known are {', '.join(PARAMETERS)}")
    _integer(fields, "n", 1, 1, 1)
    max_tokens = _integer(fields, "max_tokens", 1, None, min(DEFAULT_MAX_TOKENS, max(room_tokens, 1)))
    if max_tokens > room_tokens:
        raise ValueError(
            f"max_tokens: {max_tokens} exceeds the {max(room_tokens, 0)} tokens that fit behind this prompt"
        )
    temperature = _real(fields, "temperature", 0.0, 2.0, defaults.get("temperature", 0.0))
    greedy = temperature < _GREEDY_BELOW
    top_k = _integer(fields, "top_k", -1, None, int(defaults.get("top_k", 0)))
    top_p = _real(fields, "top_p", 0.0, 1.0, defaults.get("top_p", 1.0), above=True)
    min_p = _real(fields, "min_p", 0.0, 1.0, defaults.get("min_p", 0.0))
    ignore_eos = _boolean(fields, "ignore_eos", False)
    sampling = Sampling(
        max_tokens=max_tokens,
        min_tokens=_integer(fields, "min_tokens", 0, max_tokens, 0, upper_name="max_tokens"),
        temperature=0.0 if greedy else temperature,
        top_k=0 if greedy else min(max(top_k, 0), vocab_size),
        top_p=1.0 if greedy else top_p,
        min_p=0.0 if greedy else min_p,
        presence_penalty=_real(fields, "presence_penalty", -2.0, 2.0, 0.0),
        frequency_penalty=_real(fields, "frequency_penalty", -2.0, 2.0, 0.0),
        repetition_penalty=_real(
            fields, "repetition_penalty", 0.0, None, defaults.get("repetition_penalty", 1.0), above=True
        ),
        seed=_integer(fields, "seed", -_INT64, _INT64 - 1, None)
        if "seed" in fields
        else secrets.randbits(_DRAWN_SEED_BITS),
        stop_ids=_stop_ids(fields, () if ignore_eos else eos_ids, vocab_size),
        logit_bias=_logit_bias(fields, vocab_size),
        logprobs=_integer(fields, "logprobs", 0, MAX_LOGPROBS, None) if "logprobs" in fields else None,
    )
    return Parameters(
        sampling=sampling,
        stop=_stops(fields),
        include_stop=_boolean(fields, "include_stop_str_in_output", False),
        skip_special_tokens=_boolean(fields, "skip_special_tokens", True),
        seed_drawn="seed" not in fields and not greedy,
    )


def token_ids(values: object, name: str, vocab_size: int) -> tuple[int, ...]:
    """Checked token ids. Raises ValueError naming `name`, the place and the range."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}: is a {type(values).__name__}, not a list of token ids")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            raise ValueError(f"{name}[{index}]: {_shown(value)} is no token id in [0, {vocab_size - 1}]")
    return tuple(values)


def _shown(value: object) -> str:
    """A value as an error message quotes it, never longer than a line takes."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _INT64:
        return "a number beyond 64 bits"
    text = ascii(value) if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checked(
    fields: Mapping[str, object], name: str, allowed: str, accept: Callable[[object], _Value | None]
) -> _Value:
    """`accept` returns the value it takes or None; the refusal says what is allowed."""
    accepted = accept(fields[name])
    if accepted is None:
        raise ValueError(f"{name}: {_shown(fields[name])} is not {allowed}")
    return accepted


def _integer(
    fields: Mapping[str, object],
    name: str,
    low: int,
    high: int | None,
    default: int | None,
    upper_name: str | None = None,
) -> int:
    """An integer in [low, high]; `upper_name` says which parameter set the upper end."""

    def accept(value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            return None
        return value

    if name not in fields and default is not None:
        return default
    upper = "" if high is None else f"{upper_name}={high}" if upper_name else str(high)
    return _checked(
        fields, name, f"an integer of at least {low}" if high is None else f"an integer in [{low}, {upper}]", accept
    )


def _real(
    fields: Mapping[str, object], name: str, low: float, high: float | None, default: float, *, above: bool = False
) -> float:
    """A finite number in [low, high], or in (low, high] where it must lie above `low`."""

    def accept(value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            number = float(value)
        except OverflowError:
            return None
        fits = math.isfinite(number) and (low < number if above else low <= number) and (high is None or number <= high)
        return number if fits else None

    if high is None:
        allowed = f"a finite number above {low:g}" if above else f"a finite number of at least {low:g}"
    else:
        allowed = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    return _checked({name: default, **fields}, name, allowed, accept)


def _boolean(fields: Mapping[str, object], name: str, default: bool) -> bool:
    return _checked({name: default, **fields}, name, "true or false", lambda v: v if isinstance(v, bool) else None)


def _stops(fields: Mapping[str, object]) -> tuple[str, ...]:
    value = fields.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        raise ValueError(f"stop: {_shown(value)} is not one string or a list of at most {MAX_STOPS}")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise ValueError(f"stop[{index}]: {_shown(stop)} is not text of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(stops)


def _stop_ids(fields: Mapping[str, object], eos_ids: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    own = token_ids(fields.get("stop_token_ids", []), "stop_token_ids", vocab_size)
    stop_ids = tuple(dict.fromkeys([*eos_ids, *own]))
    if len(stop_ids) > MAX_STOP_IDS:
        raise ValueError(
            f"stop_token_ids: {len(own)} given; at most {MAX_STOP_IDS - len(eos_ids)} fit beside the model's own"
        )
    return stop_ids


def _logit_bias(fields: Mapping[str, object], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Token id -> added score. JSON objects have text keys, so ids are accepted in decimal text too."""
    value = fields.get("logit_bias", {})
    if not isinstance(value, Mapping) or len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias: {_shown(value)} is not an object of at most {MAX_LOGIT_BIAS} token ids")
    found: dict[int, float] = {}
    for key, bias in value.items():
        is_decimal = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 12
        (token,) = token_ids([int(key) if is_decimal else key], "logit_bias", vocab_size)
        found[token] = _real({"logit_bias": bias}, "logit_bias", -100.0, 100.0, 0.0)
    return tuple(sorted(found.items()))
