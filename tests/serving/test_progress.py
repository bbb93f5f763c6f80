"""What an operator sees while a server warms up: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.serving.servers import environment

PROGRAM = """
from serving.progress import Display, WarmUpBar

with Display() as display:
    bar = WarmUpBar(display)
    for total in (3, 2):
        for done in range(total):
            bar(f"decode rows={done}", done + 1, total)
    display.say("program  compiled s")
"""


def test_programs_move_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    wide = {**environment(), "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=wide)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:
        pass  # Linux's way to say that the other side has closed
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    text = seen.decode()
    for line in ("compiling 3 programs", "compiling 2 programs", "100%", "decode rows=2", "program  compiled s"):
        assert line in text


def test_elsewhere_there_are_lines_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr == "program  compiled s\n"
