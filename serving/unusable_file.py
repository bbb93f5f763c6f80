"""Which flag named the file that could not be used: one place for every command, so that none repeats it.

A command opens what its flags name and lets OSError fly; `serving.cli` asks here for the line that people read.
"""

from __future__ import annotations

import errno
import os

from absl import flags

_REMEDIES = {
    errno.ENOENT: "name one that exists",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder that exists",
    errno.EACCES: "let this user use it, or name another",
}


def line_of(error: OSError, values: flags.FlagValues) -> str:
    """`FLAG: FILE: what is wrong; what to do`, without the flag where none of `values` names that file."""
    name = os.fsdecode(error.filename)
    flag = flag_of(name, values)
    return describe(error) if flag is None else f"{flag}: {describe(error)}"


def describe(error: OSError) -> str:
    """`FILE: what is wrong; what to do`."""
    reason = (error.strerror or type(error).__name__).lower().removesuffix(" or directory")
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{os.fsdecode(error.filename)}: {reason}" + (f"; {remedy}" if remedy else "")


def flag_of(name: str, values: flags.FlagValues) -> str | None:
    """The flag whose value is this file, else the one whose folder holds it, the innermost."""
    path = os.path.abspath(name)
    found = [(os.path.abspath(value), flag) for flag in values for value in _texts(values[flag].value)]
    holding = [(given, flag) for given, flag in found if path == given or path.startswith(given + os.sep)]
    return max(holding, key=lambda pair: len(pair[0]))[1] if holding else None


def _texts(value: object) -> list[str]:
    several = value if isinstance(value, list) else [value]
    return [text for text in several if isinstance(text, str) and text]
