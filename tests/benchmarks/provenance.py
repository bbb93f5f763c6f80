"""Where a results file comes from: versions, hardware, date, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping

from solver.facts.hardware import cpu_model


def provenance(command: str, seed: int | None) -> dict[str, object]:
    """The fields that every results file carries."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seed": seed,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
    }


def origin(results: Mapping[str, object], *more: str) -> str:
    """The same in one line of a report, with other fields of the results behind it."""
    names = ("command", "date", "seed", "python", "numpy", "cpu", "cores", *more)
    return "; ".join(f"{name}: {results[name]}" for name in names)
