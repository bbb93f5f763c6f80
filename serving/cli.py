"""`exegpt COMMAND`: a table of commands and the one place where their errors become exit statuses.

Each command is a module of `serving.commands` with absl flags in `FLAGS` (its own `flags.FlagValues()`, so that two
commands never clash in one process) and `main(argv) -> int`, called with the flags parsed and `argv` holding what is
left (`argv[0]` is the program). A module is imported only when its command runs: planning needs neither jax nor grpc.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from types import ModuleType

from absl import flags

from serving import unusable_file
from serving.flags import config

COMMANDS: dict[str, str] = {
    "demo": "profile the embedded model, plan for a latency bound, run the plan, and check every answer",
    "check": "say whether a model directory is supported, why, and the bytes it needs per device",
    "profile": "measure what a model costs on the devices at hand, or compose it from published tables",
    "convert": "turn a model directory into an Orbax checkpoint and back, bit for bit",
    "fit": "make a workload file from a log, from counts or from moments, and show it",
    "plan": "find the schedule with the highest throughput under the bounds, and prove it",
    "explain": "say in words why a plan is what it is, and what would make it faster",
    "pareto": "throughput against the latency bound, as a table and a chart",
    "simulate": "run a plan event by event on a workload or trace",
    "verify": "check a plan, its prediction and its proof with code that the search does not use",
    "diff": "show every field in which two plans differ",
    "generate": "answer a file of prompts (JSON lines in, JSON lines out)",
    "serve": "answer over gRPC",
    "load": "put a load on a server: arrivals, traces, percentiles, goodput, a chart",
    "client": "send one prompt to a server and print the answer as it comes",
    "admin": "ask a running server, or tell it what to do: plan, stats, timeline, state, replan, drain, profile",
}

_EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 with one line on standard error that names what to change."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _fail(f"command: {command!r} is unknown; choose one of {', '.join(COMMANDS)}")
    try:
        return _run(command, rest)
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except (ValueError, OSError, flags.Error) as error:
        return _fail(_one_line(error))
    except RuntimeError as error:
        # Only here, so that a command which needs no engine does not load one's words.
        from exegpt_jax.engine.api import EngineError

        if not isinstance(error, EngineError):
            raise
        return _fail(_one_line(error))


def _run(command: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"serving.commands.{command}")
    values: flags.FlagValues = getattr(module, "FLAGS", flags.FLAGS)
    program = f"exegpt {command}"
    if any(argument in ("--help", "-help", "-h") for argument in arguments):
        print(_command_usage(program, module, values))
        return 0
    try:
        positional = config.parse(values, program, arguments)
        status: int = module.main(positional)
    except OSError as error:
        if error.filename is None:
            raise
        raise ValueError(unusable_file.line_of(error, values)) from error
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: exegpt COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "exegpt COMMAND --help lists a command's flags; --flagfile=FILE reads flags from a file, one a line.",
        ]
    )


def _command_usage(program: str, module: ModuleType, values: flags.FlagValues) -> str:
    """The module's docstring and its own flags; libraries that define global flags are left out."""
    lines = [f"usage: {program} [--flag=value ...]", "", (module.__doc__ or "").strip(), "", "flags:"]
    own = config.own_flags(values)
    for name in sorted(own):
        flag = own[name]
        shown = "" if flag.default is None or flag.default == "" else f" (default: {flag.default_as_str})"
        switch = f"--[no]{name}" if flag.boolean else f"--{name}"
        lines.append(f"  {switch}")
        lines.extend(textwrap.wrap(f"{flag.help}{shown}", 110, initial_indent="      ", subsequent_indent="      "))
    lines.extend(["  --flagfile", "      read flags from this file, one a line"])
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(line: str) -> int:
    print(f"exegpt: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
