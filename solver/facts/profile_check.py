"""What every Profile must hold before it is written or used: sizes that rise, times that a measurement can give."""

from __future__ import annotations

import numpy as np

from solver.facts.profile import SCHEMA_VERSION, Mark, Profile, Table


def check_profile(profile: Profile, what: str) -> None:
    """Raises ValueError with one line, beginning with `what`, on a value that no measurement gives."""
    if profile.schema_version != SCHEMA_VERSION:
        raise ValueError(version_line(what, profile.schema_version))
    for name in ("dispatch_s", "phase_s", "spread", "stage_dispatch_s"):
        value = getattr(profile, name)
        if value is not None and not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{what}.{name}: {value:g} is no time or share; measure again")
    if not profile.layers:
        raise ValueError(f"{what}.layers: empty; measure at least one tensor degree")
    seen = [(times.tensor, times.kind) for times in profile.layers]
    if len(set(seen)) != len(seen):
        raise ValueError(f"{what}.layers: a tensor degree and layer kind stands twice; keep one")
    if sorted(times.tensor for times in profile.ends) != sorted({tensor for tensor, _ in seen}):
        raise ValueError(f"{what}.ends: their tensor degrees are not those of the layers; measure both")
    for i, layer in enumerate(profile.layers):
        _check_table(layer.encode, f"{what}.layers[{i}].encode")
        _check_table(layer.decode, f"{what}.layers[{i}].decode", idle=layer.kind.name == "encoder")
    for i, end in enumerate(profile.ends):
        _check_table(end.embed, f"{what}.ends[{i}].embed")
        _check_table(end.head, f"{what}.ends[{i}].head")


def version_line(what: str, version: object) -> str:
    """The refusal of a file of another version."""
    return f"{what}.schema_version: {version}, but this program reads {SCHEMA_VERSION}; profile again"


def _check_table(table: Table, what: str, *, idle: bool = False) -> None:
    """`idle`: a layer that does not run, so that nothing is its time."""
    for name, grid in (("first", table.first), ("second", table.second)):
        if grid.ndim != 1 or not grid.size:
            raise ValueError(f"{what}.{name}: an empty grid; measure again")
        if not np.isfinite(grid).all() or grid.min() < 0 or (np.diff(grid) <= 0).any():
            raise ValueError(f"{what}.{name}: sizes must be finite, not negative, and rise")
    shape = (len(table.first), len(table.second))
    for name, array in (("seconds", table.seconds), ("marks", table.marks)):
        if array.shape != shape:
            raise ValueError(f"{what}.{name}: shape {array.shape} where {shape} belongs")
    wrong = ~(np.isfinite(table.seconds) & (table.seconds > 0 if not idle else table.seconds == 0))
    if wrong.any():
        i, j = map(int, np.argwhere(wrong)[0])
        raise ValueError(f"{what}.seconds[{i}][{j}]: {table.seconds[i, j]:g} is no time; measure it again")
    if table.marks.max() > max(Mark):
        raise ValueError(f"{what}.marks: {table.marks.max()} is no mark; the largest is {int(max(Mark))}")
