"""Where a load's figures come from: command, date, versions, hardware of the client."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys

from solver.facts.hardware import cpu_model

_PACKAGES = ("exegpt-jax", "grpcio", "protobuf", "numpy")


def provenance(seed: int) -> dict[str, object]:
    """The first fields of a results file."""
    return {
        "command": " ".join(["exegpt", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": platform.platform(terse=True),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
