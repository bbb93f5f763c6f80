"""Where a results file comes from: versions, hardware, date, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform


def provenance(command: str, seed: int | None) -> dict[str, object]:
    """The fields that every results file carries."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seed": seed,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
    }


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
