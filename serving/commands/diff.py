"""Shows every field in which two plans differ.

usage: exegpt diff OLD.json NEW.json. Status 0, whether they differ or not; the last line is DIFF {json}.
"""

from __future__ import annotations

import json

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.plans import plan_files
from solver.plan.compare import differences

FLAGS = flags.FlagValues()

_MOST_TEXT = 60


def main(argv: list[str]) -> int:
    """Prints the table of differences."""
    names = plan_files.given_plans(argv, None, 2)
    first, second = (plan_files.read_plan(name) for name in names)
    found = differences(first, second)
    console = Console(highlight=False, soft_wrap=True)
    if found:
        table = Table(title=f"{names[0]} against {names[1]}", title_justify="left")
        for heading in ("field", "first", "second", "change"):
            table.add_column(heading, justify="left" if heading == "field" else "right", no_wrap=True)
        for difference in found:
            change = "" if difference.change is None else f"{difference.change:+.2%}"
            table.add_row(difference.path, _short(difference.first), _short(difference.second), change)
        console.print(table)
    else:
        console.print("the plans are equal")
    print(f"DIFF {json.dumps({'fields': [d.path for d in found], 'equal': not found})}")
    return 0


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}..."
