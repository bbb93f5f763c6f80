"""Two plans side by side: every field in which they differ, by its path in the file."""

from __future__ import annotations

import dataclasses
import json
import math

from solver.plan.plan import Plan

ABSENT = "-"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field: its path ("schedule.encode_batch"), and its value in both files; ABSENT where a file has none."""

    path: str
    first: object
    second: object

    @property
    def change(self) -> float | None:
        """Relative change, where both are numbers and the first is not 0."""
        first, second = _number(self.first), _number(self.second)
        return second / first - 1 if first and second is not None else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def differences(first: Plan, second: Plan) -> list[Difference]:
    """In the order of the file; empty for equal plans."""
    ours, theirs = _flat(json.loads(first.to_json())), _flat(json.loads(second.to_json()))
    paths = sorted({*ours, *theirs}, key=lambda path: [(part.isdigit(), part.zfill(8)) for part in path])
    return [
        Difference(_join(path), ours.get(path, ABSENT), theirs.get(path, ABSENT))
        for path in paths
        if ours.get(path, ABSENT) != theirs.get(path, ABSENT)
    ]


def _flat(value: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Leaves by path; short lists of plain values are leaves."""
    if isinstance(value, dict) and value:
        return {key: leaf for name in value for key, leaf in _flat(value[name], (*path, name)).items()}
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return {key: leaf for i, part in enumerate(value) for key, leaf in _flat(part, (*path, str(i))).items()}
    return {path: value}


def _join(path: tuple[str, ...]) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path).removeprefix(".")
