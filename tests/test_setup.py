"""`make setup` refuses what it cannot do in one line, and leaves a finished environment alone."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def setup(directory: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(directory / "requirements" / "setup.sh")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def python_saying(directory: pathlib.Path, version: str) -> str:
    """An executable that claims to be some Python."""
    path = directory / f"python{version}"
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_without_lock_file_is_refused_in_one_line(checkout: pathlib.Path) -> None:
    done = setup(checkout, PYTHON=python_saying(checkout, "3.99"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "requirements/python3.99.lock" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_run_is_named(checkout: pathlib.Path) -> None:
    done = setup(checkout, PYTHON=str(checkout / "nothing"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(checkout / "nothing") in done.stderr


def test_lock_files_hold_hashes_and_no_address() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        lines = lock.read_text().splitlines()
        assert "://" not in lock.read_text()
        pinned = [i for i, line in enumerate(lines) if "==" in line]
        assert pinned
        assert all("--hash=sha256:" in lines[i + 1] for i in pinned)
