"""The command line: what it lists, what it imports, how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import cli
from tests.serving.servers import ROOT, environment, exegpt

SPEAK_GRPC = {"demo", "serve", "client"}


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt(*arguments), capture_output=True, text=True, timeout=60, env=environment(), check=False, **settings
    )


def test_help_lists_every_command() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in cli.COMMANDS:
        assert f"  {command} " in shown.stdout


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_a_command_shows_its_flags_and_stays_light(command: str) -> None:
    program = (
        "import sys; from serving import cli; status = cli.main(sys.argv[1:]);"
        "loaded = sorted({name.partition('.')[0] for name in sys.modules} & {'jax', 'flax', 'grpc', 'ortools'});"
        "print(loaded, file=sys.stderr); sys.exit(status)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert shown.returncode == 0
    assert shown.stderr in ("[]\n", "['grpc']\n")
    assert "grpc" not in shown.stderr or command in SPEAK_GRPC
    assert shown.stdout.startswith(f"usage: exegpt {command} ")
    assert "--flagfile" in shown.stdout
    assert "--only_check_args" not in shown.stdout


def test_unknown_command_is_one_line() -> None:
    done = run("fly")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"exegpt: command: 'fly' is unknown; choose one of {', '.join(cli.COMMANDS)}"]


def test_every_command_is_there() -> None:
    for command in cli.COMMANDS:
        assert (ROOT / "serving" / "commands" / f"{command}.py").is_file()


def test_a_flagfile_is_read(tmp_path: Path) -> None:
    (tmp_path / "flags").write_text("--prompt=x\n--address=127.0.0.1:1\n")
    done = run("client", f"--flagfile={tmp_path / 'flags'}")
    assert done.returncode == 1
    assert done.stderr.startswith("exegpt: UNAVAILABLE")
    assert run("client", "--flagfile=/nonexistent").returncode == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("generate", f"--model={tmp_path}", "--input=/nonexistent", "--output=-", "--engine=fake")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["exegpt: /nonexistent: No such file or directory"]
