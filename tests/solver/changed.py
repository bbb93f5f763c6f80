"""A JSON file with one field changed, for tests of what readers refuse."""

from __future__ import annotations

import json
from typing import Any


def with_field(text: str, path: str, value: object) -> str:
    """The field at `path` (names and indices with dots between) becomes `value`; the value `...` removes it."""
    data: Any = json.loads(text)
    *upper, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    part = data
    for name in upper:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return json.dumps(data)
