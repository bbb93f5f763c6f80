"""Reading single fields of a `config.json` so that a bad value becomes one clear line.

The parsers of `model_config` and its neighbours ask for fields by name, type and range; whatever does not fit raises
`UnsupportedModel`, whose text names the field, the value and what would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from solver.facts.model_spec import Activation


class UnsupportedModel(ValueError):
    """A config asks for what is not done here; the text is one line that names the field."""


# Far beyond any model that exists; a larger number is a damaged file, and would end as an absurd allocation.
MAX_SIZE = 10_000_000
MAX_LAYERS = 10_000
MAX_POSITIONS = 100 * MAX_SIZE

# By which a config speaks of rotary positions, and of sliding windows.
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")
WINDOW_FIELDS = ("sliding_window", "use_sliding_window", "layer_types")

ACTIVATIONS: dict[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
DTYPES = {f"{prefix}{name}": name for name in ("float32", "float16", "bfloat16") for prefix in ("", "torch.")}


def show(value: object) -> str:
    """A value as it may stand in a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """A config's fields with checked access; `where` prefixes names in messages ("rope_parameters.")."""

    def __init__(self, values: Mapping[str, object], where: str = "") -> None:
        self.values = values
        self.where = where

    def get(self, *names: str) -> object:
        """The first of the names that is present and not null; None if none is."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def fail(self, name: str, value: object, remedy: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.where}{name}: {show(value)} {remedy}")

    def integer(self, *names: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self.get(*names)
        if value is None:
            if default is None:
                raise UnsupportedModel(f"{self.where}{names[0]}: missing; config.json must give it")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(names[0], value, "is no whole number")
        if not low <= value <= high:
            raise self.fail(names[0], value, f"is out of range; give {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, low: float = 0.0, high: float = math.inf) -> float:
        """A finite number in (low, high]."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise UnsupportedModel(f"{self.where}{name}: missing; config.json must give it")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, value, "is no number")
        if not (math.isfinite(value) and low < value <= high):
            raise self.fail(
                name,
                value,
                f"is out of range; give a finite number above {low:g}"
                + ("" if high == math.inf else f", at most {high:g}"),
            )
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, value, "is neither true nor false")
        return value

    def choice(self, *names: str, default: str | None, choices: Mapping[str, str]) -> str:
        """A string that is a key of `choices`, translated by it."""
        value = self.get(*names)
        if value is None:
            if default is None:
                raise UnsupportedModel(f"{self.where}{names[0]}: missing; config.json must give it")
            value = default
        if not isinstance(value, str) or value not in choices:
            raise self.fail(names[0], value, f"is not supported; supported: {', '.join(choices)}")
        return choices[value]

    def section(self, name: str) -> Fields | None:
        """A nested object, or None where it is absent or empty."""
        value = self.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(name, value, "is no object")
        return Fields(value, f"{self.where}{name}.")

    def refuse(self, names: Sequence[str], neutral: Sequence[object] = (), remedy: str = "is not supported") -> None:
        """Refuses each of the fields unless it is absent, null, false, zero, empty or one of `neutral`."""
        for name in names:
            value = self.values.get(name)
            if value is None or value is False or value in (0, "", [], {}):
                continue
            if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral):
                continue
            raise self.fail(name, value, remedy)


def activation(fields: Fields, name: str, default: str) -> Activation:
    """The activation that the field of this name asks for."""
    return cast(Activation, fields.choice(name, default=default, choices=ACTIVATIONS))


def checkpoint_dtype(fields: Fields) -> str:
    """The dtype that the config names, in either dialect."""
    return fields.choice("dtype", "torch_dtype", default="float32", choices=DTYPES)
