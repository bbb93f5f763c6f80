"""Foreign clients, unchanged, each in a process of its own with an environment of its own.

`requirements/clients.txt` says what is in `.venv-clients`, and `.ci/run clients` makes it. A client's side of a test is
a program in this folder that imports no module of this tree, takes a case and its arguments on the command line, and
prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = ROOT / ".venv-clients"
PYTHON = ENVIRONMENT / "bin" / "python"
_HERE = Path(__file__).parent
_TIMEOUT_S = 120


def what_is_missing() -> str | None:
    """One line that says why foreign clients cannot run here; None if they can."""
    made_from = ENVIRONMENT / ".packages"
    if not made_from.is_file() or not PYTHON.exists():
        return "foreign clients: no .venv-clients here; .ci/run clients makes it"
    if made_from.read_bytes() != (ROOT / "requirements" / "clients.txt").read_bytes():
        return "foreign clients: .venv-clients is not what requirements/clients.txt says; .ci/run clients makes it anew"
    return None


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A program of this folder, under way; whoever starts it ends it."""
    return subprocess.Popen(
        [str(PYTHON), str(_HERE / program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def run(program: str, *arguments: object) -> Any:
    """What a program of this folder printed as the last line, read as JSON."""
    process = start(program, *arguments)
    try:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, f"{program} {arguments} ended with {process.returncode}:\n{out}\n{err}"
    return json.loads(out.splitlines()[-1])


def environment() -> dict[str, str]:
    """Without this tree on the path, so that a client meets nothing of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
