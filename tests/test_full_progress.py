"""A full run that is broken off goes on where it stopped."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.full_progress import FullProgress

SUITE = """
import pathlib
ran = pathlib.Path(__file__).with_name("ran")

def note(name):
    ran.write_text((ran.read_text() if ran.is_file() else "") + name)

def test_a(): note("a")
def test_b():
    note("b")
    assert pathlib.Path(__file__).with_name("mended").is_file()
def test_c(): note("c")
"""


def test_only_what_has_not_passed_runs_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_suite_of_three.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    kept, results = tmp_path / "kept.jsonl", tmp_path / "results.json"

    def run() -> int:
        arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
        return int(pytest.main(["-c", str(tmp_path / "pytest.ini"), *arguments], plugins=[FullProgress(kept, results)]))

    assert run() == pytest.ExitCode.TESTS_FAILED
    assert len(json.loads(results.read_text())["failed"]) == 1
    (tmp_path / "mended").touch()
    assert run() == pytest.ExitCode.OK
    assert (tmp_path / "ran").read_text() == "abcb"
    found = json.loads(results.read_text())
    assert (found["passed"], found["failed"]) == (3, [])
