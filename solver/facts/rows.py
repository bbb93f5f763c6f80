"""Rows of somebody else's file, in blocks of columns with the numbers of their lines: CSV with a header, or JSON lines.

Plain CSV (no quotes, no blank lines, all lines of one width) is cut into columns a block at a time; at the first block
that is not plain, Python's csv module goes on from there. Gzip is recognised by its first bytes.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, cast

import numpy as np

STANDARD = "-"

_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 2**20
_BLOCK_ROWS = 2**14

# Line numbers, and per wanted column the values in these lines.
Block = tuple[Sequence[int], list[Sequence[object]]]


@contextlib.contextmanager
def open_bytes(source: str) -> Iterator[BinaryIO]:
    """Bytes of the file or of standard input, unpacked."""
    with contextlib.ExitStack() as stack:
        raw = sys.stdin.buffer if source == STANDARD else stack.enter_context(open(source, "rb"))
        stream = cast(io.BufferedReader, raw)
        if stream.peek(2)[:2] == _GZIP:
            stream = cast(io.BufferedReader, stack.enter_context(gzip.open(stream)))
        yield stream


def read_blocks(stream: BinaryIO, names: Sequence[str], shown: str) -> Iterator[Block]:
    """Blocks of the named columns. Raises ValueError with one line that begins with `shown` and the line's number."""
    number, first = 0, ""
    for number, first in _lines(stream, shown, 0):  # noqa: B007
        if first.strip():
            break
    if not first.strip():
        raise ValueError(f"{shown}: is empty; give CSV with a header, or JSON lines")
    if first.lstrip()[0] in "{[":
        rows = _json_rows(itertools.chain([(number, first)], _lines(stream, shown, number)), names, shown)
        yield from _in_blocks(rows)
    else:
        yield from _csv_blocks(number, first, stream, names, shown)


def _lines(stream: BinaryIO, shown: str, before: int) -> Iterator[tuple[int, str]]:
    """Numbered lines of bounded length, the first of which has number `before` + 1."""
    number = before
    while raw := stream.readline(_BLOCK_BYTES + 1):
        number += 1
        if len(raw) > _BLOCK_BYTES:
            raise ValueError(f"{shown}: line {number}: is longer than {_BLOCK_BYTES} bytes; give CSV or JSON lines")
        yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")


def _in_blocks(rows: Iterator[tuple[int, list[object]]]) -> Iterator[Block]:
    while block := list(itertools.islice(rows, _BLOCK_ROWS)):
        numbers, values = zip(*block, strict=True)
        yield numbers, list(zip(*values, strict=True))


def _csv_blocks(number: int, first: str, stream: BinaryIO, names: Sequence[str], shown: str) -> Iterator[Block]:
    header = [name.strip() for name in next(csv.reader([first]))]
    for name in names:
        if name not in header:
            raise ValueError(f"{shown}: {name}: no such column; there are {', '.join(header)[:200]}")
    places = [header.index(name) for name in names]
    while data := stream.read(_BLOCK_BYTES):
        data += stream.readline(_BLOCK_BYTES)
        columns = _plain_columns(data, len(header))
        if columns is None:
            rest = itertools.chain(
                _lines(io.BytesIO(data), shown, number), _lines(stream, shown, number + data.count(b"\n"))
            )
            yield from _in_blocks(_csv_rows((line for _, line in rest), number, header, places, shown))
            return
        yield range(number + 1, number + 1 + len(columns[0])), [columns[place] for place in places]
        number += len(columns[0])


def _plain_columns(data: bytes, width: int) -> list[list[str]] | None:
    """All columns of whole lines; None where they are not plain."""
    data = data.replace(b"\r\n", b"\n")
    data = data if data.endswith(b"\n") else data + b"\n"
    if b'"' in data or b"\r" in data:
        return None
    marks = np.frombuffer(data, np.uint8)
    ends = marks[(marks == ord(",")) | (marks == ord("\n"))] == ord("\n")
    if len(ends) % width or width == 1:
        return None
    lines = ends.reshape(-1, width)
    if not lines[:, -1].all() or lines[:, :-1].any():
        return None
    fields = data.decode().replace("\n", ",").split(",")
    return [fields[place : len(ends) : width] for place in range(width)]


def _csv_rows(
    lines: Iterable[str], before: int, header: list[str], places: list[int], shown: str
) -> Iterator[tuple[int, list[object]]]:
    reader = csv.reader(lines)
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{shown}: line {before + reader.line_num}: {len(row)} columns where the header has {len(header)}; "
                    "is the file cut short?"
                )
            yield before + reader.line_num, [row[place] for place in places]
    except csv.Error as error:
        raise ValueError(f"{shown}: line {before + reader.line_num}: is no CSV ({error})") from None


def _json_rows(
    lines: Iterable[tuple[int, str]], names: Sequence[str], shown: str
) -> Iterator[tuple[int, list[object]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{shown}: line {number}: is no JSON ({error}); give one object a line, none cut short"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{shown}: line {number}: is no JSON object; give one object a line")
        for name in names:
            if name not in row:
                raise ValueError(f"{shown}: line {number}: {name}: missing; there are {', '.join(row)[:200]}")
        yield number, [row[name] for name in names]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no finite number")
