"""Reading the plans that commands are given; a plan on standard input may be followed by the line `PLAN {..}`."""

from __future__ import annotations

import sys
from pathlib import Path

from serving.outputs import STANDARD
from serving.unusable_file import describe
from solver.plan.plan import Plan, from_json

_SUMMARY = "PLAN "


def read_plan(given: str) -> Plan:
    """The plan in this file, or on standard input. Raises ValueError naming file and field."""
    if given == STANDARD:
        lines = sys.stdin.read().splitlines()
        while lines and (not lines[-1].strip() or lines[-1].startswith(_SUMMARY)):
            lines.pop()
        text, name = "\n".join(lines), "standard input"
    else:
        try:
            text, name = Path(given).read_text(encoding="utf-8"), given
        except UnicodeDecodeError:
            raise ValueError(f"{given}: plan: is no text; write it again with exegpt plan") from None
        except OSError as error:
            raise ValueError(f"plan: {describe(error)}") from error
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def given_plans(argv: list[str], flag: str | None, count: int) -> list[str]:
    """Names of plans from the arguments and the flag. Raises ValueError unless there are `count`."""
    names = [*argv[1:], *([flag] if flag else [])]
    if len(names) != count:
        raise ValueError(f"plan: {len(names)} given; name {count}: {argv[0]} {' '.join(['PLAN.json'] * count)}")
    return names
