"""Digests of facts by content: two files that say the same have one digest, however they are written.

A Plan names what it was made from by these digests, so `exegpt verify` notices a profile or workload that changed.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import Protocol

import numpy as np


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def content_digest(value: object) -> str:
    """sha256 over a tree of dataclasses, tuples, dicts, arrays and plain values, types and field names included."""
    hashed = hashlib.sha256()
    _feed(hashed, value)
    return hashed.hexdigest()


def _feed(hashed: _Hash, value: object) -> None:
    """Every part is preceded by its type and length, so that no two trees give the same bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        hashed.update(f"<{type(value).__name__} {len(fields)}>".encode())
        for field in fields:
            hashed.update(f"<{field.name}>".encode())
            _feed(hashed, getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        hashed.update(f"<array {little.dtype.str} {little.shape}>".encode())
        hashed.update(little.tobytes())
    elif isinstance(value, dict):
        hashed.update(f"<dict {len(value)}>".encode())
        for key in sorted(value):
            _feed(hashed, key)
            _feed(hashed, value[key])
    elif isinstance(value, tuple | list):
        hashed.update(f"<list {len(value)}>".encode())
        for part in value:
            _feed(hashed, part)
    elif isinstance(value, enum.Enum):
        _feed(hashed, value.value)
    elif value is None or isinstance(value, str | bool | int | float):
        text = repr(value).encode()
        hashed.update(f"<{type(value).__name__} {len(text)}>".encode())
        hashed.update(text)
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
