"""--config: the command line before the file before the default; what is wrong is one line; what counts is shown."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from absl import flags

from serving.flags import config
from tests.serving.servers import environment, exegpt, server_process


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt("serve", *arguments), capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def written(directory: Path, text: str) -> str:
    path = directory / "serve.toml"
    path.write_text(text)
    return f"--config={path}"


def test_the_command_line_counts_before_the_file_before_the_default(tmp_path: Path) -> None:
    given = written(
        tmp_path,
        'policy = "static"\nmax_requests = 7\ndrain_s = 1.5\nprofile = ["a", "b"]\nallow_remote = true\nmax_rows = 3\n',
    )
    done = run("--max_requests=9", given, "--noallow_remote", "--profile=c")
    assert done.returncode == 1
    shown = run("--max_requests=9", given, "--noallow_remote", "--profile=c", "--print_config")
    assert (shown.returncode, shown.stderr) == (0, "")
    found = tomllib.loads(shown.stdout)
    assert (found["policy"], found["drain_s"], found["max_rows"]) == ("static", 1.5, 3)
    assert (found["max_requests"], found["allow_remote"], found["profile"]) == (9, False, ["c"])
    assert (found["settle_s"], found["engine"]) == (0.0, "jax")
    # What is printed is itself such a file, and says the same.
    again = run(written(tmp_path, shown.stdout), "--print_config")
    assert again.stdout == shown.stdout


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_reqests = 3", "max_reqests is unknown; did you mean max_requests?"),
        ("config = 'x'", "config is unknown; "),
        ("verbosity = 3", "verbosity is unknown; "),
        ("max_requests = 0", "flag --max_requests=0: "),
        ("policy = 'fifo'", "flag --policy=fifo: value should be one of"),
        ("drain_s = 1979-05-27", "drain_s is a date; give text, a number"),
        ("[tls]\ncert = 'x'", "tls is unknown; "),
        ("[address]\nhost = 'x'", "address is a dict; give text, a number"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    done = run(written(tmp_path, text))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith(f"exegpt: config: {tmp_path}/serve.toml: {line}")


def test_no_toml_and_no_file_are_one_line(tmp_path: Path) -> None:
    assert "serve.toml is no TOML: " in run(written(tmp_path, "max_requests 3")).stderr
    assert run("--config=absent.toml").stderr == "exegpt: config: absent.toml: no such file; name one that exists\n"


def test_users_and_passwords_in_addresses_are_masked() -> None:
    values = flags.FlagValues()
    config.define_config(values)
    flags.DEFINE_string("endpoint", None, "", flag_values=values, module_name="serving.x")
    flags.DEFINE_list("more", None, "", flag_values=values, module_name="serving.x")
    values(["test", "--endpoint=https://me:secret@host/path", "--more=a,http://token@b"])
    assert config.resolved(values) == {"endpoint": "https://***@host/path", "more": ["a", "http://***@b"]}
    assert "secret" not in config.as_toml(values) + config.as_line(values)


def test_the_server_logs_what_it_runs_with(tiny_model: Path, tmp_path: Path) -> None:
    given = written(tmp_path, 'engine = "fake"\nmax_requests = 77\n')
    with server_process(tiny_model, given) as server:
        server.terminate()
        status, _, err = server.finish()
    assert status == 0
    (line,) = (line for line in err.splitlines() if "configuration: " in line)
    assert " max_requests=77 " in line
    assert f'model="{tiny_model}"' in line
