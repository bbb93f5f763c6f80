"""The command line: what it lists, what it imports, how it fails."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from serving import cli
from serving.unusable_file import flag_of, line_of
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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--input=/nonexistent",), "input: /nonexistent: no such file; name one that exists"),
        (("--input=/",), "input: /: is a directory; name a file"),
        (("--plan=/nonexistent", "--input=/dev/null"), "plan: /nonexistent: no such file; name one that exists"),
        (("--output=/nonexistent/y",), "output: /nonexistent/y cannot be written; name a file in a folder that exists"),
        (("--timeline=/nonexistent/y",), "timeline: /nonexistent/y cannot be written; name a file in a folder that"),
        (("--flagfile=/nonexistent",), "flagfile: /nonexistent: no such file; name one that exists"),
    ],
)
def test_a_file_that_is_not_there_is_one_line_that_names_its_flag(
    tiny_model: Path, arguments: tuple[str, ...], line: str
) -> None:
    given = (f"--model={tiny_model}", "--input=/dev/null", "--output=-", "--engine=fake", *arguments)
    done = run("generate", *given)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"exegpt: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_the_flag_of_a_file_is_the_one_that_names_it_or_its_folder(tmp_path: Path) -> None:
    values = flags.FlagValues()
    for name in ("model", "outer", "input", "text"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_list("profile", None, "", flag_values=values)
    model = tmp_path / "model"
    values(["x", f"--outer={tmp_path}", f"--model={model}", f"--input={model / 'a'}", "--profile=b,c", "--text="])
    assert flag_of(str(model / "a"), values) == "input"
    assert flag_of(str(model / "config.json"), values) == "model"
    assert flag_of(str(tmp_path / "models"), values) == "outer"
    assert flag_of("c", values) == "profile"
    assert flag_of("d", values) is None
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "d")
    assert line_of(error, values) == "d: no such file; name one that exists"
