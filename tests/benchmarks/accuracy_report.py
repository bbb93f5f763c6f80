"""Results files of the accuracy benchmarks: one table as JSON and as Markdown, with where it comes from."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from solver.facts.workload import Floats
from tests.benchmarks.provenance import provenance

RESULTS = pathlib.Path(__file__).parent / "results"

Row = dict[str, object]


def error_row(case: str, goal: str, errors: Floats) -> Row:
    """Count, median, 90th percentile and mean of relative errors (their size), in percent."""
    sizes = 100 * np.abs(errors[np.isfinite(errors)])
    middle, most = np.percentile(sizes, [50, 90])
    return {
        "case": case,
        "n": int(sizes.size),
        "median_percent": round(float(middle), 2),
        "p90_percent": round(float(most), 2),
        "mean_percent": round(float(sizes.mean()), 2),
        "goal": goal,
    }


def write(name: str, title: str, rows: Sequence[Row], notes: str, seed: int | None = None) -> None:
    """Writes `results/NAME.json` and `.md`, and prints the latter."""
    facts = provenance(f"python -m tests.benchmarks.{name}", seed)
    RESULTS.mkdir(exist_ok=True)
    record = {**facts, "notes": notes, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    columns = list(rows[0])
    lines = [f"# {title}", "", notes, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    lines += ["", ", ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    text = "\n".join(lines)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
