"""Strict reading of frozen dataclasses from JSON: every wrong field is one line that names it.

A file that people edit and machines exchange is refused at its first fault (unknown field, missing field, wrong type, a
number that is not finite) rather than read generously and misunderstood. Dataclass types are the schema.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import TypeVar

_Value = TypeVar("_Value")


def to_json(value: object) -> str:
    """A dataclass as JSON text, byte-identical for equal values: sorted keys, two spaces, a final newline."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is no dataclass instance")
    return json.dumps(dataclasses.asdict(value), sort_keys=True, indent=2, allow_nan=False) + "\n"


def from_json(cls: type[_Value], text: str, what: str) -> _Value:
    """The dataclass that `to_json` wrote. Raises ValueError with one line that begins with `what` and the field."""
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: no valid JSON ({error}); write it again with exegpt") from None
    return typing.cast(_Value, _read(cls, data, what))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no finite number")


def _read(kind: object, data: object, where: str) -> object:
    """`data` as `kind`, a type of a dataclass field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, data, where)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), data, where)
    if origin is typing.Literal:
        if data not in arguments:
            raise ValueError(f"{where}: {data!r} is none of {', '.join(map(str, arguments))}")
        return data
    if origin is tuple:
        return _read_tuple(arguments, data, where)
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise ValueError(f"{where}: {data!r} is no finite number")
        return float(data)
    if not isinstance(kind, type) or not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: {data!r} is no {getattr(kind, '__name__', kind)}")
    return data


def _read_dataclass(kind: type, data: object, where: str) -> object:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {data!r} is no object")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in data:
        if name not in fields:
            raise ValueError(f"{where}.{name}: unknown field; known are {', '.join(sorted(fields))}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in data:
            raise ValueError(f"{where}.{name}: missing")
    values = {name: _read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_tuple(arguments: tuple[object, ...], data: object, where: str) -> tuple[object, ...]:
    if not isinstance(data, list):
        raise ValueError(f"{where}: {data!r} is no list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds: list[object] = [arguments[0]] * len(data)
    elif len(arguments) == len(data):
        kinds = list(arguments)
    else:
        raise ValueError(f"{where}: {len(data)} entries where {len(arguments)} belong")
    plain = _plain_numbers(arguments, data)
    if plain is not None:
        return plain
    return tuple(_read(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, data, strict=True)))


def _plain_numbers(arguments: tuple[object, ...], data: list[object]) -> tuple[object, ...] | None:
    """A long list of numbers without a fault, at once; None where entries are to be looked at one by one."""
    if arguments[1:] != (Ellipsis,):
        return None
    found = set(map(type, data))
    if arguments[0] is int and found <= {int}:
        return tuple(data)
    if arguments[0] is float and found <= {int, float}:
        numbers = tuple(map(float, typing.cast(list[float], data)))
        return numbers if all(map(math.isfinite, numbers)) else None
    return None
