"""Writing a command's result whole or not at all, to a file or to standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STANDARD = "-"


def check_target(flag: str, target: str | None, endings: tuple[str, ...] = ()) -> None:
    """Raises ValueError, before any work is done, where nothing could be written there."""
    if target is None or target == STANDARD:
        return
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{flag}: {target} cannot be written; name a file in a folder that exists")
    if endings and not target.endswith(endings):
        raise ValueError(f"{flag}: {target} has no known ending; give one of {', '.join(endings)}")


def write_whole(target: str, text: str) -> None:
    """Writes `text` to the named file, which is replaced in one step, or to standard output."""
    if target == STANDARD:
        sys.stdout.write(text)
        return
    path = Path(target)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
