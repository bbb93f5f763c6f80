"""A command's flags from a TOML file, below those of the command line, and the resolved ones back as such a file.

    # serve.toml
    model = "/models/llama"
    address = "127.0.0.1:50051"
    max_requests = 512

A name is a flag's name; what the command line gives counts, else the file, else the default.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path

from absl import flags

from serving.unusable_file import describe

FLAG, PRINT_FLAG = "config", "print_config"
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def define_config(values: flags.FlagValues) -> None:
    flags.DEFINE_string(FLAG, None, "TOML file of flags; those of the command line count before it", flag_values=values)
    flags.DEFINE_bool(PRINT_FLAG, False, "print the resolved flags as such a file, and end", flag_values=values)


def parse(values: flags.FlagValues, program: str, arguments: list[str]) -> list[str]:
    """Parses a command line and, where it names one, its configuration file; returns what is no flag.

    Raises flags.Error, ValueError or OSError with one line."""
    try:
        positional: list[str] = values([program, *arguments])
    except flags.CantOpenFlagFileError as error:
        reason = error.__context__
        raise ValueError(f"flagfile: {describe(reason) if isinstance(reason, OSError) else error}") from error
    path: str | None = values[FLAG].value if FLAG in values else None
    if path is None:
        return positional
    from_file = arguments_of(Path(path), values)
    values.unparse_flags()
    try:
        positional = values([program, *from_file, *arguments])
    except flags.Error as error:
        # The command line alone has just been parsed well.
        raise ValueError(f"config: {path}: {error}") from error
    return positional


def arguments_of(path: Path, values: flags.FlagValues) -> list[str]:
    """What a file says, as arguments; `values` hold the command line, which hides what the file says of its flags."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is no TOML: {error}") from error
    known = {name for name in own_flags(values) if name not in (FLAG, PRINT_FLAG)}
    arguments = []
    for name, value in content.items():
        if name not in known:
            raise ValueError(f"config: {path}: {name} is unknown{_nearest(name, known)}")
        if not values[name].present:
            arguments.append(f"--{name}={_text(path, name, value)}")
    return arguments


def own_flags(values: flags.FlagValues) -> dict[str, flags.Flag]:
    """Those that this package defines, by name; libraries' global ones are left out."""
    by_module = values.flags_by_module_dict()
    return {flag.name: flag for name, found in by_module.items() if name.startswith("serving") for flag in found}


def resolved(values: flags.FlagValues) -> dict[str, object]:
    """Every flag of the command that has a value, in order; users and passwords in addresses are masked."""
    own = own_flags(values)
    kept = {name: own[name].value for name in sorted(own) if name not in (FLAG, PRINT_FLAG)}
    return {name: _masked(value) for name, value in kept.items() if value is not None}


def as_toml(values: flags.FlagValues) -> str:
    """The resolved flags as a file that --config takes."""
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in resolved(values).items())


def as_line(values: flags.FlagValues) -> str:
    """The same for a log."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in resolved(values).items())


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"


def _text(path: Path, name: str, value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(each, str | int | float) for each in value):
            return ",".join(map(str, value))
    raise ValueError(f"config: {path}: {name} is a {type(value).__name__}; give text, a number, true, false or a list")


def _masked(value: object) -> object:
    if isinstance(value, list):
        return [_masked(each) for each in value]
    return _USER_IN_URL.sub("***", value) if isinstance(value, str) else value
