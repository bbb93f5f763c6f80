"""Columns of numbers from a file that somebody else wrote (`solver.facts.rows`).

A million rows are read in seconds, eight bytes a number. The first row that does not fit ends the reading with one line
that names file, line, column and value: a log that is half wrong is not half used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import math
import zlib
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np

from solver.facts.rows import STANDARD, open_bytes, read_blocks
from solver.facts.truncated_normal import MOST_TOKENS
from solver.facts.workload import Floats

Kind = Literal["length", "count", "time"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One wanted column: its name in the file, and what its values are.

    "length": whole tokens, at least 1. "count": a number, not negative. "time": seconds, or ISO 8601 (without a zone:
    UTC), one of the two in the whole file.
    """

    name: str
    kind: Kind


def read_columns(source: str, wanted: Sequence[Column]) -> list[Floats]:
    """The columns, float64 [rows] each; whole numbers stay exact, being far below 2^53.

    Raises:
      ValueError: one line that names file, line, column and value.
      OSError: no such file.
    """
    shown = "standard input" if source == STANDARD else source
    parsers = [_Parser(column.kind) for column in wanted]
    blocks: list[list[Floats]] = [[] for _ in wanted]
    try:
        with open_bytes(source) as stream:
            for numbers, columns in read_blocks(stream, [column.name for column in wanted], shown):
                for column, parser, found, values in zip(wanted, parsers, blocks, columns, strict=True):
                    found.append(_parse(values, parser, numbers, f"{shown}: line {{}}: {column.name}"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{shown}: is cut short or damaged ({error}); copy it again") from None
    except UnicodeDecodeError:
        raise ValueError(f"{shown}: is no UTF-8 text; give CSV or JSON lines") from None
    if not blocks[0]:
        raise ValueError(f"{shown}: holds no row; give at least one request")
    return [np.concatenate(found) for found in blocks]


def _parse(values: Sequence[object], parser: _Parser, numbers: Sequence[int], where: str) -> Floats:
    """A block of one column at once, or value by value where something is special or wrong."""
    if set(map(type, values)) <= {str, int, float}:
        with contextlib.suppress(ValueError, OverflowError):
            found = np.fromiter(map(float, cast(Sequence[float], values)), np.float64, len(values))
            if parser.accepts(found):
                return found
    slowly = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            slowly[i] = parser.one(value)
        except ValueError as error:
            text = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
            raise ValueError(f"{where.format(numbers[i])}: {text} {error}") from None
    return slowly


class _Parser:
    """Turns values of one column into numbers; remembers how the first row writes time."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._iso: bool | None = None

    def accepts(self, block: Floats) -> bool:
        """Whether every number of a block may stand in this column."""
        if self._kind == "time":
            if self._iso is None:
                self._iso = False
            return not self._iso and bool(np.isfinite(block).all())
        if self._kind == "count":
            return bool(np.isfinite(block).all() and block.min() >= 0)
        return bool((block >= 1).all() and (block <= MOST_TOKENS).all() and (block == np.floor(block)).all())

    def one(self, value: object) -> float:
        """One value. Raises ValueError with what should stand there."""
        number = _number(value)
        if self._kind == "time":
            return self._time(value, number)
        if number is None or not self.accepts(np.array([number])):
            raise ValueError(
                "is no count; give a finite number, not negative"
                if self._kind == "count"
                else f"is no whole number of tokens from 1 to {MOST_TOKENS}; correct the row or leave it out"
            )
        return number

    def _time(self, value: object, number: float | None) -> float:
        iso = number is None
        if self._iso is None:
            self._iso = iso
        if self._iso != iso:
            raise ValueError("is written otherwise than the rows before; give seconds or ISO 8601 throughout")
        seconds = _iso_seconds(value) if number is None else number
        if not math.isfinite(seconds):
            raise ValueError("is no finite time; give seconds or ISO 8601")
        return seconds


def _iso_seconds(value: object) -> float:
    try:
        moment = datetime.datetime.fromisoformat(value.strip() if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("is no time; give seconds or ISO 8601, such as 2023-11-16T18:17:03.98") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _number(value: object) -> float | None:
    """A JSON number or a decimal in text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
