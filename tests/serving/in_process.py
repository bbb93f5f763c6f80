"""A command run in this process as a new one would run it: no flag remembers an earlier run."""

from __future__ import annotations

import importlib

import pytest

from serving import cli


def call(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    forget_flags(command)
    capsys.readouterr()
    status = cli.main([command, *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def refusal(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """The one line with which the command ends."""
    status, _, error = call(capsys, command, *arguments)
    assert status == 1
    assert error.startswith("exegpt: ")
    assert error.count("\n") == 1
    return error


def forget_flags(command: str) -> None:
    values = importlib.import_module(f"serving.commands.{command}").FLAGS
    for name in values:
        values[name].unparse()
