"""Where a results file comes from: versions, hardware, date, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform

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
