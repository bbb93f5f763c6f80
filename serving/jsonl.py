"""Requests and answers as JSON lines: reading with a bound on memory, writing in order, and picking up a broken run.

A line that is no request becomes a `Line` with an error and keeps its place. An id is what the line says, else the
line's number, so that a resumed run can be compared with its input line by line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

STANDARD = "-"
MAX_LINE_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of input.

    Attributes:
      id: its "id", else its number from 1.
      fields: the request without the id; None if the line is none.
      error: why, in one line.
      end_bytes: input consumed up to here.
    """

    id: str | int
    fields: dict[str, object] | None
    error: str | None
    end_bytes: int


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """Every line but blank ones."""
    number = end_bytes = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        end_bytes += len(raw)
        too_long = len(raw) > MAX_LINE_BYTES
        while too_long and raw and not raw.endswith(b"\n"):
            raw = stream.readline(MAX_LINE_BYTES)
            end_bytes += len(raw)
        if too_long:
            yield Line(number, None, f"line: is longer than {MAX_LINE_BYTES} bytes", end_bytes)
        elif raw.strip():
            yield _parse(raw, number, end_bytes)


def _parse(raw: bytes, number: int, end_bytes: int) -> Line:
    try:
        found = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return Line(number, None, "line: is not UTF-8", end_bytes)
    except json.JSONDecodeError as error:
        return Line(number, None, f"line: is no JSON ({error.msg} at character {error.pos + 1})", end_bytes)
    except (ValueError, RecursionError) as error:
        return Line(number, None, f"line: is no JSON ({error})", end_bytes)
    if not isinstance(found, dict):
        return Line(number, None, f"line: is a {type(found).__name__}, not an object", end_bytes)
    own = found.pop("id", None)
    if own is None:
        return Line(number, found, None, end_bytes)
    if isinstance(own, bool) or not isinstance(own, str | int) or not _is_unicode(own):
        return Line(number, None, "id: is neither valid text nor an integer", end_bytes)
    return Line(own, found, None, end_bytes)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_unicode(value: str | int) -> bool:
    """JSON escapes can make lone surrogates, which no UTF-8 file can hold."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def open_input(source: str) -> Iterator[BinaryIO]:
    """The named file, or standard input."""
    if source == STANDARD:
        yield sys.stdin.buffer
        return
    with open(source, "rb") as stream:
        yield stream


@contextlib.contextmanager
def open_output(target: str, *, append: bool) -> Iterator[BinaryIO]:
    """The named file, or standard output."""
    if target == STANDARD:
        yield sys.stdout.buffer
        return
    with open(target, "ab" if append else "wb") as stream:
        yield stream


def write(stream: BinaryIO, answer: dict[str, object]) -> None:
    """One line, handed to the system at once: what is killed after this has lost nothing before it."""
    stream.write(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    stream.flush()


def size_bytes(source: str) -> int | None:
    """For a progress bar; None where it cannot be known."""
    return Path(source).stat().st_size if Path(source).is_file() else None


def skip_answered(target: str, lines: Iterator[Line]) -> int:
    """Consumes the input lines that `target` answers already, after cutting off a torn last line; returns how many.

    Raises ValueError if `target` answers other lines than the input's first ones."""
    path = Path(target)
    if not path.exists():
        return 0
    if not path.is_file():
        raise ValueError(f"resume: --output={target} is no file that could be continued")
    _cut_torn_line(path)
    done = 0
    with path.open("rb") as answers:
        for done, raw in enumerate(answers, start=1):
            try:
                answered = json.loads(raw)["id"]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"resume: line {done} of {target} is no answer; name another --output") from error
            line = next(lines, None)
            if line is None:
                raise ValueError(f"resume: {target} has more answers than the input has lines; give the same --input")
            if line.id != answered:
                raise ValueError(
                    f"resume: line {done} of {target} answers id {answered!r:.60}, the input's is {line.id!r:.60}; "
                    "give the --input it was made from"
                )
    return done


def _cut_torn_line(path: Path) -> None:
    """Truncates behind the last newline, looking for it from the end."""
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 2**16)
            stream.seek(begin)
            newline = stream.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        stream.truncate(end)
