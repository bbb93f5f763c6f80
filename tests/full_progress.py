"""make test-full can be broken off and goes on where it stopped; a finished run leaves its results to commit.

A test that passed is not run again while no Python file of the tree has changed. The run that has no test left to do
writes `tests/results/test-full.json`.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / ".cache" / "test-full.jsonl"
RESULTS = ROOT / "tests" / "results" / "test-full.json"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "grpcio", "hypothesis", "pytest")


def tree_digest(root: pathlib.Path = ROOT) -> str:
    """Of every Python file; what passed under another digest counts for nothing."""
    digest = hashlib.sha256()
    for package in ("solver", "exegpt_jax", "serving", "tests"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class FullProgress:
    """A pytest plugin: skips what passed before, keeps what passes now, writes the results when all is done."""

    def __init__(self, kept: pathlib.Path = KEPT, results: pathlib.Path = RESULTS) -> None:
        self._kept, self._results = kept, results
        self._digest = tree_digest()
        self._passed: dict[str, float] = {}
        self._skipped: dict[str, str] = {}
        self._failed: set[str] = set()
        lines = kept.read_text().splitlines() if kept.is_file() else []
        for entry in map(json.loads, lines):
            if entry["digest"] == self._digest:
                self._passed[entry["test"]] = entry["seconds"]

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self._passed])
        items[:] = left

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.skipped:
            self._skipped[report.nodeid] = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        elif report.when == "call":
            self._passed[report.nodeid] = round(report.duration, 3)
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            entry = {"digest": self._digest, "test": report.nodeid, "seconds": round(report.duration, 3)}
            with self._kept.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            return
        if session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
            return  # a part of the suite is no result
        content = {
            "command": "make test-full",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "seed": "hypothesis derandomised; every other seed stands in its test",
            "tree": self._digest,
            "passed": len(self._passed),
            "failed": sorted(self._failed),
            "skipped": self._skipped,
            "seconds": round(sum(self._passed.values()), 1),
            "slowest": dict(sorted(self._passed.items(), key=lambda each: -each[1])[:20]),
        }
        self._results.parent.mkdir(parents=True, exist_ok=True)
        self._results.write_text(json.dumps(content, indent=2) + "\n")
